"""Augmentation on batches: every picture gets a draw of its own, from a generator that the caller seeds."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from core import pixel_ops
from core.checks import require_kinds

# Share of the picture that erasing covers, and the shape of the box: the defaults of torchvision's RandomErasing.
_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What training pictures go through, in this order.

    crop_padding: they are shifted by up to this many pixels, and what is missing is mirrored in.
    flip: `true` mirrors half of them, by a coin; `alternating` mirrors every picture in every other pass over the set,
        a coin deciding in which (Jordan, 2024); `false` mirrors none.
    trivial_augment: one random operation a picture (see `core.trivial_augment`).
    color_jitter: strength of random changes of brightness, contrast, saturation and (a quarter of it) hue.
    random_erasing: probability that a box of the picture is blotted out.
    mixup_alpha, cutmix_alpha: how evenly two pictures are mixed (see `mix`); 0 for not at all.
    """

    crop_padding: int = 4
    flip: bool | str = True
    trivial_augment: bool = False
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        require_kinds(self)
        if not isinstance(self.crop_padding, int) or self.crop_padding < 0:
            raise ValueError(f"crop_padding must be a whole number of at least 0, got {self.crop_padding!r}")
        if not isinstance(self.flip, bool) and self.flip != "alternating":
            raise ValueError(f"flip must be true, false or 'alternating', got {self.flip!r}")
        for name, high in (("color_jitter", 2), ("random_erasing", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [0, {high}], got {getattr(self, name)}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def mixes(self) -> bool:
        """Whether pictures, and so their labels, are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


def crop_and_flip(
    images: UInt8[Tensor, "n height width channels"],
    rows: Int[Tensor, " batch"],
    *,
    padding: int,
    flip: bool | Bool[Tensor, " batch"],
    generator: torch.Generator,
) -> UInt8[Tensor, "batch height width channels"]:
    """Gather `rows` of `images`, each shifted by up to `padding` pixels (reflected at the border) and maybe mirrored.

    The same as padding by reflection, `RandomCrop` and `RandomHorizontalFlip(0.5)` drawn for each picture alone, done
    as one gather: reflection, crop and mirror only change which pixel is read, so nothing is padded or copied first.

    Args:
        rows: which pictures, on the device of `images`.
        flip: whether a coin mirrors each picture; or which pictures are mirrored.
        generator: a CPU generator; 3 draws a picture.
    """
    _, height, width, channels = images.shape
    if padding >= min(height, width):
        raise ValueError(f"padding={padding} must be smaller than the picture, {height}x{width}")
    batch, device = len(rows), images.device
    shift_y, shift_x = torch.randint(-padding, padding + 1, (2, batch, 1), generator=generator)
    mirrored = torch.randint(0, 2, (batch, 1), generator=generator).bool()
    mirrored = mirrored & flip if isinstance(flip, bool) else flip[:, None]
    y = _reflect(torch.arange(height) + shift_y, height)
    x = _reflect(torch.arange(width) + shift_x, width)
    x = torch.where(mirrored, x.flip(1), x)
    pixel = (y[:, :, None] * width + x[:, None, :]).to(device) + rows[:, None, None] * (height * width)
    flat = images.reshape(-1, channels)
    return flat.index_select(0, pixel.reshape(-1)).view(batch, height, width, channels)


def color_jitter(
    images: UInt8[Tensor, "batch height width channels"], strength: float, generator: torch.Generator
) -> UInt8[Tensor, "batch height width channels"]:
    """Change brightness, contrast, saturation and hue of every picture, in an order of its own.

    As torchvision's `ColorJitter(strength, strength, strength, strength / 4)` drawn for each picture alone.
    """
    order, amounts = draw_color_jitter(len(images), strength, generator)
    return apply_color_jitter(images, order.to(images.device), amounts.to(images.device))


def draw_color_jitter(
    batch: int, strength: float, generator: torch.Generator
) -> tuple[Int64[Tensor, "batch 4"], Float[Tensor, "batch 4"]]:
    """For each picture the order of the four changes, and their amounts: three factors around 1 and a shift of hue."""
    order = torch.rand(batch, 4, generator=generator).argsort(dim=1)
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = low + (high - low) * torch.rand(batch, 3, generator=generator)
    shift = (torch.rand(batch, 1, generator=generator) * 2 - 1) * strength / 4
    return order, torch.cat([factors, shift], dim=1)


def apply_color_jitter(
    images: UInt8[Tensor, "batch height width channels"],
    order: Int64[Tensor, "batch 4"],
    amounts: Float[Tensor, "batch 4"],
) -> UInt8[Tensor, "batch height width channels"]:
    """Change brightness (0), contrast (1), saturation (2) and hue (3) by these amounts, each picture in its order."""
    changes = (
        pixel_ops.adjust_brightness,
        pixel_ops.adjust_contrast,
        pixel_ops.adjust_saturation,
        pixel_ops.adjust_hue,
    )
    images = images.clone()
    for place in range(4):
        for index, change in enumerate(changes):
            rows = (order[:, place] == index).nonzero().flatten()
            if len(rows):
                images[rows] = change(images[rows], amounts[rows, index])
    return images


def erase(
    images: UInt8[Tensor, "batch height width channels"],
    probability: float,
    colour: UInt8[Tensor, " channels"],
    generator: torch.Generator,
) -> UInt8[Tensor, "batch height width channels"]:
    """Fill a box of each picture with one colour, with this probability: torchvision's `RandomErasing`.

    Args:
        colour: what the box is filled with; the mean colour becomes zero when the pictures are normalised.
    """
    boxes = draw_boxes(len(images), images.shape[1], images.shape[2], probability, generator).to(images.device)
    return torch.where(_inside(boxes, images)[..., None], colour, images)


def draw_boxes(
    batch: int, height: int, width: int, probability: float, generator: torch.Generator
) -> Int64[Tensor, "batch 4"]:
    """Boxes (top, left, bottom, right; exclusive below and on the right), empty where a picture is spared.

    Of ten attempts a picture the first one counts that fits into it, as in torchvision.
    """
    attempts = 10
    area = height * width * _uniform(*_ERASED_AREA, (batch, attempts), generator)
    low, high = map(math.log, _ERASED_ASPECT)
    aspect = _uniform(low, high, (batch, attempts), generator).exp()
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    box_height, box_width = (side.gather(1, first)[:, 0].long() for side in (heights, widths))
    place = torch.rand(batch, 2, generator=generator, dtype=torch.float64)
    top, left = (place[:, 0] * (height - box_height + 1)).long(), (place[:, 1] * (width - box_width + 1)).long()
    erased = (torch.rand(batch, generator=generator) < probability) & fits.any(dim=1)
    boxes = torch.stack([top, left, top + box_height, left + box_width], dim=1)
    return torch.where(erased[:, None], boxes, 0)


def mix(
    images: UInt8[Tensor, "batch height width channels"],
    labels: Int64[Tensor, " batch"],
    num_classes: int,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    generator: torch.Generator,
) -> tuple[
    UInt8[Tensor, "batch height width c"] | Float[Tensor, "batch height width c"], Float[Tensor, "batch classes"]
]:
    """Mix each picture, and its label, with the one before it in the batch.

    Mixup (Zhang et al., 2018) averages the two; CutMix (Yun et al., 2019) replaces a box. The share of each picture is
    drawn for it alone, from Beta(alpha, alpha); where both alphas are positive a coin decides which of the two it gets.

    Returns:
        Pictures, values from 0 to 255, as floats where Mixup is on; and the classes' shares of each label.
    """
    batch, height, width, _ = images.shape
    # PyTorch's own draws from a Beta distribution take no generator.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    is_mixup = torch.from_numpy(rng.random(batch) < 0.5) if cutmix_alpha else torch.ones(batch, dtype=torch.bool)
    is_mixup = is_mixup & (mixup_alpha > 0)
    share = None
    if mixup_alpha:
        drawn = torch.from_numpy(rng.beta(mixup_alpha, mixup_alpha, batch)).float()
        share = torch.where(is_mixup, drawn, 1.0).to(images.device)
    boxes = torch.zeros(batch, 4, dtype=torch.int64)
    if cutmix_alpha:
        kept = torch.from_numpy(rng.beta(cutmix_alpha, cutmix_alpha, batch))
        centre = torch.from_numpy(rng.integers((height, width), size=(batch, 2)))
        boxes = torch.where(is_mixup[:, None], 0, cutmix_boxes(kept, centre, height, width))
    return apply_mix(images, F.one_hot(labels, num_classes).float(), share, boxes.to(images.device))


def cutmix_boxes(
    kept: Float[Tensor, " batch"], centre: Int64[Tensor, "batch 2"], height: int, width: int
) -> Int64[Tensor, "batch 4"]:
    """Boxes (top, left, bottom, right) that leave this share of the picture, cut off at its border."""
    reach = 0.5 * (1 - kept).sqrt()
    half = torch.stack([reach * height, reach * width], dim=1).long()
    limit = torch.tensor([height, width])
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, limit)], dim=1)


def apply_mix(
    images: UInt8[Tensor, "batch height width channels"],
    targets: Float[Tensor, "batch classes"],
    share: Float[Tensor, " batch"] | None,
    boxes: Int64[Tensor, "batch 4"],
) -> tuple[
    UInt8[Tensor, "batch height width c"] | Float[Tensor, "batch height width c"], Float[Tensor, "batch classes"]
]:
    """Keep `share` of each picture (None: all) and take the rest, and all of its box, from the one before it."""
    previous = images.roll(1, 0)
    mixed = torch.where(_inside(boxes, images)[..., None], previous, images)
    if share is not None:
        mixed = previous + (mixed.float() - previous) * share[:, None, None, None]
    in_box = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (images.shape[1] * images.shape[2])
    kept = ((1 - in_box) if share is None else share * (1 - in_box))[:, None]
    return mixed, kept * targets + (1 - kept) * targets.roll(1, 0)


def _inside(boxes: Int64[Tensor, "batch 4"], images: Tensor) -> Bool[Tensor, "batch height width"]:
    """Which pixels lie in their picture's box."""
    top, left, bottom, right = (edge[:, None, None] for edge in boxes.unbind(1))
    y = torch.arange(images.shape[1], device=images.device)[None, :, None]
    x = torch.arange(images.shape[2], device=images.device)[None, None, :]
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def normalise(
    images: UInt8[Tensor, "batch height width channels"] | Float[Tensor, "batch height width channels"],
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Scale values from 0..255 to [0, 1], subtract `mean`, divide by `std`.

    The result lies channels-last in memory, for convolutions.
    """
    return ((images.to(torch.float32) * (1 / 255) - mean) / std).permute(0, 3, 1, 2)


def _reflect(index: Int[Tensor, "batch size"], size: int) -> Int[Tensor, "batch size"]:
    """Indices outside 0..size-1 mirrored back in, without repeating the border pixel."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
