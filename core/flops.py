"""Counting floating-point operations, so that a budget means the same on every machine."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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


def _shadow_pass(model: nn.Module, image_shape: tuple[int, int, int], *, training: bool) -> Tensor:
    with torch.device("meta"):
        images = torch.empty(_PICTURES, *image_shape)
    return copy.deepcopy(model).to("meta").train(training)(images)
