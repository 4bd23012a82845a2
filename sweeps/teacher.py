"""Who teaches where a sweep distils: what the sweep or the user names, or a stand-in for smoke runs."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.carried import CARRIED
from core.data import Dataset
from core.distill import load_teacher, warn_if_weak
from core.models import ConvNetConfig
from core.train import train
from core.train_config import TrainConfig
from nodes.command import UsageError
from sweeps.flags import Flags
from sweeps.question import Resolved

_FOLDER = "smoke_teacher"
_HOW_TO_NAME_ONE = (
    "--set teacher=FOLDER names one, a checkpoint folder such as the best/ that "
    "python sweeps/architecture.py --vary row=teacher leaves"
)


def with_teacher(resolved: Resolved, flags: Flags, data: Dataset, run_folder: Path) -> Resolved:
    """The sweep with a usable teacher for all trials that need one; a smoke run without one trains a tiny one first.

    Raises:
        UsageError: a trial needs a teacher and none is named, or it does not fit the data.

    Warns:
        WeakTeacherWarning: a teacher is below the `target_accuracy`.
    """
    named = {fields.get("teacher"): fields.get("target_accuracy") for fields in _distilling(resolved)}
    if flags.smoke and named.keys() & {None, CARRIED}:
        folder = run_folder / _FOLDER
        if not folder.exists():
            _train_stand_in(data, folder)
        recipe = resolved.recipe
        bundles = {
            level: {name: value for name, value in fields.items() if name != "teacher"}
            for level, fields in recipe.bundles.items()
        }
        base = {**recipe.base, "teacher": str(folder), "target_accuracy": None}
        return dataclasses.replace(resolved, recipe=dataclasses.replace(recipe, base=base, bundles=bundles))
    _, size, _, channels = data.train.images.shape
    for teacher, target_accuracy in named.items():
        if teacher is None:
            raise UsageError(f"distillation needs a teacher: {_HOW_TO_NAME_ONE}")
        try:
            loaded = load_teacher(teacher, class_names=data.class_names, image_size=size, in_channels=channels)
        except ValueError as error:
            raise UsageError(f"{error}; {_HOW_TO_NAME_ONE}" if teacher == CARRIED else str(error)) from error
        if target_accuracy is not None:
            warn_if_weak(loaded, teacher, target_accuracy)
    return resolved


def _distilling(resolved: Resolved) -> Iterator[dict[str, Any]]:
    """The settings of those trials that learn from a teacher."""
    for point in resolved.points:
        fields = resolved.recipe.fields(point)
        if fields.get("temperature") is not None:
            yield fields


def _train_stand_in(data: Dataset, folder: Path) -> None:
    _, size, _, channels = data.train.images.shape
    model = ConvNetConfig(image_size=size, in_channels=channels, num_classes=len(data.class_names), width=8)
    config = TrainConfig(model=model, images=len(data.train), reports=1, batch_size=64, compile=False)
    train(config, data).save(folder)
