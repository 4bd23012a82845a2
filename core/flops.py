"""Counting floating-point operations, so that a budget means the same on every machine."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def training_flops_per_image(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """FLOPs of one forward and backward pass for one picture: multiply and add count as two.

    Counted by running the pass on PyTorch's shape-only device, with every matrix product and convolution included
    (attention's too) and element-wise work left out, as is usual.

    Args:
        image_shape: channels, height, width.
    """
    # Two pictures, so that a batch norm does not refuse; the count is linear in the batch.
    with torch.device("meta"):
        images = torch.empty(2, *image_shape)
    shadow = _on_meta(model)
    with FlopCounterMode(display=False) as counter:
        shadow(images).sum().backward()
    return counter.get_total_flops() / 2


def _on_meta(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta").train()
