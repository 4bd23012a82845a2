"""Counting floating-point operations, so that a budget means the same on every machine."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core.distill import feature_loss
from core.models import Classifier

# Two, so that a batch norm does not refuse; the count is linear in the batch.
_PICTURES = 2


def training_flops_per_image(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """FLOPs of one forward and backward pass for one picture: multiply and add count as two.

    Counted by running the pass on PyTorch's shape-only device, with every matrix product and convolution included
    (attention's too) and element-wise work left out, as is usual.

    Args:
        image_shape: channels, height, width.
    """
    with FlopCounterMode(display=False) as counter:
        _shadow_pass(model, image_shape, training=True).sum().backward()
    return counter.get_total_flops() / _PICTURES


def forward_flops_per_image(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """FLOPs of one forward pass in evaluation mode for one picture, counted in the same way."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _shadow_pass(model, image_shape, training=False)
    return counter.get_total_flops() / _PICTURES


def feature_loss_flops_per_image(
    model: Classifier,
    image_shape: tuple[int, int, int],
    teacher: Classifier,
    teacher_image_shape: tuple[int, int, int],
    batch_size: int,
) -> float:
    """What `core.distill.feature_loss` costs, forward and backward: it grows with the square of the batch.

    Args:
        model, teacher: on the shape-only device.
    """
    with torch.no_grad():
        mine, theirs = (
            net.stages(torch.empty(batch_size, *shape, device="meta"))
            for net, shape in ((model, image_shape), (teacher, teacher_image_shape))
        )
    with FlopCounterMode(display=False) as counter:
        feature_loss([stage.requires_grad_() for stage in mine], theirs).backward()
    return counter.get_total_flops() / batch_size


def _shadow_pass(model: nn.Module, image_shape: tuple[int, int, int], *, training: bool) -> Tensor:
    with torch.device("meta"):
        images = torch.empty(_PICTURES, *image_shape)
    return copy.deepcopy(model).to("meta").train(training)(images)
