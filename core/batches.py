"""The stream of training batches: shuffled passes, augmented, every draw a function of (seed, step)."""

import hashlib
import warnings
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from core.augment import Augmentation, color_jitter, crop_and_flip, erase, mix
from core.data import ImageSet
from core.trivial_augment import trivial_augment


class Batches:
    """The endless stream of shuffled passes over the training pictures, cut into batches; `at(step)` is stateless."""

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        augmentation: Augmentation,
        mean: tuple[float, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            mean: of each channel, on pixel values scaled to [0, 1]; erased boxes are filled with it.
        """
        self.batch_size, self.augmentation, self.seed, self.device = batch_size, augmentation, seed, device
        self.images, self.labels = (_as_tensor(a, device) for a in (images.images, images.labels))
        self.num_classes = len(images.class_names)
        self.mean_colour = (torch.tensor(mean) * 255).round().to(device, torch.uint8)
        self._orders: dict[int, Tensor] = {}

    def at(
        self, step: int
    ) -> tuple[
        UInt8[Tensor, "batch height width channels"] | Float[Tensor, "batch height width channels"],
        Int64[Tensor, " batch"] | Float[Tensor, "batch classes"],
    ]:
        """Pictures of a step, values from 0 to 255, and their labels: classes, or their shares if mixed.

        A batch may span the end of a pass.
        """
        wanted = self.augmentation
        rows, passes = self._rows(step * self.batch_size, self.batch_size)
        flip = wanted.flip if isinstance(wanted.flip, bool) else self._is_mirrored(rows, passes)
        rows = rows.to(self.device)
        generator = torch.Generator().manual_seed(seed_for(self.seed, "augment", step))
        images = crop_and_flip(self.images, rows, padding=wanted.crop_padding, flip=flip, generator=generator)
        if wanted.trivial_augment:
            images = trivial_augment(images, generator)
        if wanted.color_jitter:
            images = color_jitter(images, wanted.color_jitter, generator)
        if wanted.random_erasing:
            images = erase(images, wanted.random_erasing, self.mean_colour, generator)
        labels = self.labels[rows]
        if not wanted.mixes:
            return images, labels
        return mix(
            images,
            labels,
            self.num_classes,
            mixup_alpha=wanted.mixup_alpha,
            cutmix_alpha=wanted.cutmix_alpha,
            generator=generator,
        )

    def _is_mirrored(self, rows: Tensor, passes: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, "flip", 0))
        first = torch.randint(0, 2, (len(self.labels),), generator=generator)
        return (first[rows] + passes) % 2 == 1

    def _rows(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Which pictures stand at these places of the stream, and in which pass over the set each does."""
        parts, passes = [], []
        while count:
            number, offset = divmod(start, len(self.labels))
            part = self._order(number)[offset : offset + count]
            parts.append(part)
            passes.append(torch.full_like(part, number))
            start, count = start + len(part), count - len(part)
        return torch.cat(parts), torch.cat(passes)

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
