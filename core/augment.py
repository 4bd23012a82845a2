"""Augmentation on batches: every picture gets a draw of its own, from a generator that the caller seeds."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


def crop_and_flip(
    images: UInt8[Tensor, "n height width channels"],
    rows: Int[Tensor, " batch"],
    *,
    padding: int,
    flip: bool,
    generator: torch.Generator,
) -> UInt8[Tensor, "batch height width channels"]:
    """Gather `rows` of `images`, each shifted by up to `padding` pixels (reflected at the border) and maybe mirrored.

    The same as padding by reflection, `RandomCrop` and `RandomHorizontalFlip(0.5)` drawn for each picture alone, done
    as one gather: reflection, crop and mirror only change which pixel is read, so nothing is padded or copied first.

    Args:
        rows: which pictures, on the device of `images`.
        generator: a CPU generator; 3 draws a picture.
    """
    _, height, width, channels = images.shape
    if padding >= min(height, width):
        raise ValueError(f"padding={padding} must be smaller than the picture, {height}x{width}")
    batch, device = len(rows), images.device
    shift_y, shift_x = torch.randint(-padding, padding + 1, (2, batch, 1), generator=generator)
    mirrored = torch.randint(0, 2, (batch, 1), generator=generator) * int(flip)
    y = _reflect(torch.arange(height) + shift_y, height)
    x = _reflect(torch.arange(width) + shift_x, width)
    x = torch.where(mirrored.bool(), x.flip(1), x)
    pixel = (y[:, :, None] * width + x[:, None, :]).to(device) + rows[:, None, None] * (height * width)
    flat = images.reshape(-1, channels)
    return flat.index_select(0, pixel.reshape(-1)).view(batch, height, width, channels)


def normalise(
    images: UInt8[Tensor, "batch height width channels"],
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Scale to [0, 1], subtract `mean`, divide by `std`. The result lies channels-last in memory, for convolutions."""
    return ((images.to(torch.float32) * (1 / 255) - mean) / std).permute(0, 3, 1, 2)


def _reflect(index: Int[Tensor, "batch size"], size: int) -> Int[Tensor, "batch size"]:
    """Indices outside 0..size-1 mirrored back in, without repeating the border pixel."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
