"""The checkpoint folder, the seam between training and serving: `model.safetensors` and `config.json`, no pickles."""

import dataclasses
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from core.models import Classifier, ModelConfig, WastefulModelWarning, build_model, model_config, model_kind

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class CheckpointError(ValueError):
    """The folder is not a usable checkpoint; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A classifier with all that is needed to use it on a raw picture.

    mean, std: per channel, on pixel values scaled to [0, 1].
    metrics: figures measured on it, such as `val_accuracy`.
    training: the resolved training configuration, for the record.
    """

    model: Classifier
    model_config: ModelConfig
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    metrics: dict[str, Any]
    training: dict[str, Any]
    commit: str | None


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the folder; each file is replaced whole, so that a crash leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format_version": FORMAT_VERSION,
        "model": model_kind(checkpoint.model_config),
        "model_config": dataclasses.asdict(checkpoint.model_config),
        "class_names": list(checkpoint.class_names),
        "normalisation": {"mean": list(checkpoint.mean), "std": list(checkpoint.std)},
        "dataset": checkpoint.dataset,
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
        "commit": checkpoint.commit,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as fresh:
        save_file(weights, Path(fresh) / WEIGHTS_FILE)
        (Path(fresh) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            (Path(fresh) / name).replace(folder / name)


def load(folder: Path) -> Checkpoint:
    """Read a folder that `save` wrote; the model is on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged, of a later format, or its weights do not fit its config.
    """
    config_file = folder / CONFIG_FILE
    try:
        config = json.loads(config_file.read_text())
    except OSError as error:
        raise CheckpointError(f"{folder} is not a checkpoint folder: {CONFIG_FILE}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{config_file} is not valid JSON: {error}") from error
    try:
        if config["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{config_file} has format version {config['format_version']}, this code reads {FORMAT_VERSION}"
            )
        fields = model_config(config["model"], config["model_config"])
        checkpoint = Checkpoint(
            model=_build_quietly(fields).eval(),
            model_config=fields,
            class_names=tuple(config["class_names"]),
            mean=tuple(config["normalisation"]["mean"]),
            std=tuple(config["normalisation"]["std"]),
            dataset=config["dataset"],
            metrics=config["metrics"],
            training=config["training"],
            commit=config["commit"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{config_file} lacks or garbles a field: {error}") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{config_file}: {error}") from error
    if len(checkpoint.class_names) != fields.num_classes:
        raise CheckpointError(
            f"{config_file} names {len(checkpoint.class_names)} classes, its model has {fields.num_classes}"
        )
    _load_weights(checkpoint.model, folder / WEIGHTS_FILE)
    return checkpoint


def _build_quietly(fields: ModelConfig) -> Classifier:
    with warnings.catch_warnings():
        # Whoever trained it has been warned; who uses it cannot change it.
        warnings.simplefilter("ignore", WastefulModelWarning)
        return build_model(fields)


def _load_weights(model: nn.Module, file: Path) -> None:
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file} does not fit the model that {CONFIG_FILE} beside it describes: {error}"
        ) from error
