"""Models by configuration: `build_model(config)` makes the module that the config's class describes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from core.models.vit import VisionTransformer, ViTConfig, WastefulModelWarning

__all__ = ["ModelConfig", "ViTConfig", "WastefulModelWarning", "build_model", "model_config", "model_kind"]

ModelConfig = ViTConfig

_MODELS: dict[str, tuple[type[ModelConfig], type[nn.Module]]] = {"vit": (ViTConfig, VisionTransformer)}


def build_model(config: ModelConfig) -> nn.Module:
    """A freshly initialised model (PyTorch's global generator draws the weights)."""
    return _MODELS[model_kind(config)][1](config)


def model_kind(config: ModelConfig) -> str:
    """The name that stands for the config's class in a checkpoint, such as `vit`."""
    return next(kind for kind, (config_class, _) in _MODELS.items() if type(config) is config_class)


def model_config(kind: str, fields: Mapping[str, Any]) -> ModelConfig:
    """The config of a checkpoint, validated.

    Raises:
        ValueError: the kind or a field is unknown, or a value is not allowed.
    """
    if kind not in _MODELS:
        raise ValueError(f"unknown model {kind!r}; known: {', '.join(_MODELS)}")
    config_class = _MODELS[kind][0]
    known = {field.name for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{kind} has no field {', '.join(unknown)}; its fields: {', '.join(sorted(known))}")
    return config_class(**fields)
