"""The stream of training batches: shuffled passes, augmented, every draw a function of (seed, step)."""

import hashlib
import warnings
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from core.augment import crop_and_flip
from core.data import ImageSet


class Batches:
    """The endless stream of shuffled passes over the training pictures, cut into batches; `at(step)` is stateless."""

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        crop_padding: int,
        flip: bool,
        seed: int,
        device: torch.device,
    ) -> None:
        self.batch_size, self.crop_padding, self.flip, self.seed = batch_size, crop_padding, flip, seed
        self.device = device
        self.images, self.labels = (_as_tensor(a, device) for a in (images.images, images.labels))
        self._orders: dict[int, Tensor] = {}

    def at(self, step: int) -> tuple[UInt8[Tensor, "batch height width channels"], Int64[Tensor, " batch"]]:
        """Pictures and labels of a step; a batch may span the end of a pass."""
        rows = self._rows(step * self.batch_size, self.batch_size).to(self.device)
        generator = torch.Generator().manual_seed(seed_for(self.seed, "augment", step))
        images = crop_and_flip(self.images, rows, padding=self.crop_padding, flip=self.flip, generator=generator)
        return images, self.labels[rows]

    def _rows(self, start: int, count: int) -> Tensor:
        parts = []
        while count:
            number, offset = divmod(start, len(self.labels))
            part = self._order(number)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)

    def _order(self, number: int) -> Tensor:
        if number not in self._orders:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "order", number))
            self._orders = {number: torch.randperm(len(self.labels), generator=generator)}
        return self._orders[number]


def seed_for(seed: int, stream: str, index: int) -> int:
    """An independent seed for each use of randomness and each step."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _as_tensor(array: Any, device: torch.device) -> Tensor:
    """A tensor over the array's own memory on the CPU (it is only read), a copy on any other device."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only and shared by all trials; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(array).to(device)
