"""Poor heatmaps, made from good ones in five strengths: how much do answers suffer?"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.segment.grounder import Grounder, Image

STRENGTHS = (1, 2, 3, 4, 5)
MIDDLE_STRENGTH = 3


def blur(logits: Tensor, strength: int) -> Tensor:
    """Probabilities averaged over a Gaussian of 1.5% of the side for each step."""
    sigma = 0.015 * strength * logits.shape[-1]
    reach = int(3 * sigma) + 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    shares = F.pad(logits.sigmoid()[None, None], (reach,) * 4, mode="replicate")
    shares = F.conv2d(F.conv2d(shares, kernel[None, None, :, None]), kernel[None, None, None])
    return torch.logit(shares[0, 0], eps=1e-4)


def shift(logits: Tensor, strength: int) -> Tensor:
    """Moved to the lower right by 1.5% of the side for each step; what comes in at the edges is cold."""
    step = round(0.015 * strength * logits.shape[-1])
    moved = torch.full_like(logits, -6.0)
    moved[step:, step:] = logits[:-step, :-step] if step else logits
    return moved


def shrink(logits: Tensor, strength: int) -> Tensor:
    """Every warm place loses a rim of 0.8% of the side for each step (a minimum filter)."""
    reach = max(1, round(0.008 * strength * logits.shape[-1]))
    return -F.max_pool2d(-logits[None], 2 * reach + 1, stride=1, padding=reach)[0]


def noise(logits: Tensor, strength: int) -> Tensor:
    """Smooth Gaussian noise of 0.8 logits for each step, on cells of a sixteenth of the side."""
    random = torch.Generator().manual_seed(int(1000 * float(logits.abs().sum())) % 2**31)
    grid = torch.randn(1, 1, 16, 16, generator=random)
    smooth = F.interpolate(grid, size=logits.shape[-2:], mode="bicubic")[0, 0]
    return logits + 0.8 * strength * smooth


def blobs(logits: Tensor, strength: int) -> Tensor:
    """One false blob for each step, as hot as 0.4 and 0.05 more for each step, at random places."""
    random = np.random.default_rng(int(1000 * float(logits.abs().sum())) % 2**31)
    size = logits.shape[-1]
    places = torch.arange(size, dtype=torch.float32) / size
    shares = logits.sigmoid()
    for _ in range(strength):
        x, y, radius = random.uniform(0.1, 0.9), random.uniform(0.1, 0.9), random.uniform(0.03, 0.06)
        away = ((places[:, None] - y) ** 2 + (places[None] - x) ** 2) / (2 * radius**2)
        shares = torch.maximum(shares, (0.4 + 0.05 * strength) * torch.exp(-away))
    return torch.logit(shares, eps=1e-4)


DAMAGES = {"blur": blur, "shift": shift, "shrink": shrink, "noise": noise, "false blobs": blobs}


class DamagedGrounder:
    """A grounder whose heatmaps are all damaged in one way; see `DAMAGES`."""

    def __init__(self, grounder: Grounder, kind: str, strength: int) -> None:
        self.grounder, self.damage = grounder, functools.partial(DAMAGES[kind], strength=strength)
        self.revision, self.image_size = grounder.revision, grounder.image_size
        self.prompt_tokens = grounder.prompt_tokens

    def encode_images(self, images: Sequence[Image]) -> Sequence[Any]:
        return self.grounder.encode_images(images)

    def heatmaps(self, features: Sequence[Any], prompts: Sequence[Sequence[str]]) -> list[Tensor]:
        return [
            torch.stack([self.damage(logits) for logits in one]) for one in self.grounder.heatmaps(features, prompts)
        ]
