"""Models by configuration: `build_model(config)` makes the module that the config's class describes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from core.models.classifier import Classifier
from core.models.convnet import ConvNet, ConvNetConfig, ConvTrunk
from core.models.hybrid import Hybrid, HybridConfig
from core.models.resnet import ResNet, ResNetConfig
from core.models.transformer import TransformerConfig
from core.models.vit import VisionTransformer, ViTConfig, WastefulModelWarning

__all__ = [
    "MODEL_CONFIGS",
    "Classifier",
    "ConvNetConfig",
    "HybridConfig",
    "ModelConfig",
    "ResNetConfig",
    "TransformerConfig",
    "ViTConfig",
    "WastefulModelWarning",
    "build_model",
    "initialise_from_data",
    "model_config",
    "model_kind",
]

ModelConfig = ViTConfig | ResNetConfig | ConvNetConfig | HybridConfig

_MODELS: dict[str, tuple[type[ModelConfig], type[Classifier]]] = {
    "vit": (ViTConfig, VisionTransformer),
    "resnet": (ResNetConfig, ResNet),
    "convnet": (ConvNetConfig, ConvNet),
    "hybrid": (HybridConfig, Hybrid),
}

MODEL_CONFIGS: dict[str, type[ModelConfig]] = {kind: config_class for kind, (config_class, _) in _MODELS.items()}
"""The class of the config of each kind of model."""


def build_model(config: ModelConfig) -> Classifier:
    """A freshly initialised model (PyTorch's global generator draws the weights)."""
    return _MODELS[model_kind(config)][1](config)


def initialise_from_data(model: nn.Module, images: torch.Tensor) -> None:
    """Let the parts that start from statistics of the training pictures do so.

    Args:
        images: normalised, `[n, channels, height, width]`; a thousand are plenty.
    """
    for module in model.modules():
        if isinstance(module, ConvTrunk):
            module.initialise_from_data(images)


def model_kind(config: ModelConfig) -> str:
    """The name that stands for the config's class in a checkpoint, such as `vit`."""
    return next(kind for kind, config_class in MODEL_CONFIGS.items() if type(config) is config_class)


def model_config(kind: str, fields: Mapping[str, Any]) -> ModelConfig:
    """The config of a checkpoint, validated.

    Raises:
        ValueError: the kind or a field is unknown, or a value is not allowed.
    """
    if kind not in MODEL_CONFIGS:
        raise ValueError(f"unknown model {kind!r}; known: {', '.join(MODEL_CONFIGS)}")
    known = {field.name for field in dataclasses.fields(MODEL_CONFIGS[kind])}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{kind} has no field {', '.join(unknown)}; its fields: {', '.join(sorted(known))}")
    return MODEL_CONFIGS[kind](**fields)
