"""Distillation as a loss: the student learns from the labels and from what a trained teacher says of the same view."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from core.carried import checkpoint_folder
from core.checkpoint import Checkpoint, load

MAX_FEATURE_PAIRS = 3


class WeakTeacherWarning(UserWarning):
    """The teacher is no better than what the student should become, or nobody knows how good it is."""


def load_teacher(folder: str, *, class_names: Sequence[str], image_size: int, in_channels: int) -> Checkpoint:
    """The teacher in a checkpoint folder, or the one `carried`, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the folder is not a usable checkpoint.
        ValueError: the teacher has other classes, or takes other pictures.
    """
    teacher = load(checkpoint_folder(folder))
    if teacher.class_names != tuple(class_names):
        raise ValueError(
            f"the teacher in {folder} has other classes ({_shorten(teacher.class_names)}) "
            f"than the data ({_shorten(class_names)})"
        )
    shape = teacher.model_config
    if (shape.image_size, shape.in_channels) != (image_size, in_channels):
        raise ValueError(
            f"the teacher in {folder} takes {shape.image_size}x{shape.image_size} pictures with {shape.in_channels} "
            f"channels, the data has {image_size}x{image_size} with {in_channels}"
        )
    return teacher


def warn_if_weak(teacher: Checkpoint, folder: str, target_accuracy: float) -> None:
    """
    Warns:
        WeakTeacherWarning: the teacher's recorded validation accuracy is unknown, or below the student's target.
    """
    accuracy = teacher.metrics.get("val_accuracy")
    if accuracy is None or accuracy < target_accuracy:
        known = "has no recorded val_accuracy" if accuracy is None else f"reached {accuracy:.1%} in validation"
        warnings.warn(
            f"the teacher in {folder} {known}, and its student should reach {target_accuracy:.1%}",
            WeakTeacherWarning,
            stacklevel=3,
        )


def soft_loss(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    temperature: float,
    standardise: bool,
) -> Float[Tensor, ""]:
    """KL divergence from the teacher's softened probabilities to the student's, a picture, times temperature squared.

    The square keeps the gradient's size where the temperature changes (Hinton et al., 2015).

    Args:
        standardise: give the logits of every picture mean 0 and standard deviation 1 first, so that the student need
            not match the teacher's scale (Sun et al., 2024, "Logit standardization in knowledge distillation").
    """
    if standardise:
        student, teacher = _standardised(student), _standardised(teacher)
    mine, theirs = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return F.kl_div(mine, theirs, reduction="batchmean", log_target=True) * temperature**2


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """How differently the two see which pictures of the batch are alike, averaged over up to three pairs of stages.

    Similarity-preserving distillation (Tung & Mori, 2019): features of any two shapes can be compared, without a
    projection that would have to be learned. Stages are paired evenly; the last one with the last one.

    Args:
        student, teacher: features after each stage, first dimension the batch.
    """
    num_pairs = min(MAX_FEATURE_PAIRS, len(student), len(teacher))
    losses = []
    for pair in range(1, num_pairs + 1):
        mine, theirs = (stages[pair * len(stages) // num_pairs - 1] for stages in (student, teacher))
        losses.append((_similarity(mine) - _similarity(theirs)).square().sum() / len(mine) ** 2)
    return torch.stack(losses).mean()


def _similarity(features: Tensor) -> Float[Tensor, "batch batch"]:
    flat = features.float().flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def _standardised(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    std, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (std + 1e-7)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
