"""Changes of colour and place on a batch of pictures, each by an amount of its own.

The definitions are torchvision's for uint8 tensors, roundings included, so that a published recipe means the same here.
All take uint8 pictures `[batch, height, width, channels]` and one amount a picture, on the same device.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F


def adjust_brightness(images: UInt8[Tensor, "b h w c"], factors: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """0 gives black, 1 the picture itself, 2 twice its brightness."""
    return _blend(images, torch.zeros_like(images), factors)


def adjust_contrast(images: UInt8[Tensor, "b h w c"], factors: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """0 gives the mean grey, 1 the picture itself."""
    return _blend(images, _grey(images).float().mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: UInt8[Tensor, "b h w c"], factors: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """0 gives the grey picture, 1 the picture itself."""
    return _blend(images, _grey(images), factors)


def adjust_hue(images: UInt8[Tensor, "b h w c"], shifts: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """Turn the hue by a share of the colour circle, from -0.5 to 0.5; grey pictures stay as they are."""
    if images.shape[3] != 3:
        return images
    red, green, blue = (images.float() / 255).unbind(dim=3)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = (hue + 6 * shifts[:, None, None]) % 6
    channels = []
    for offset in (5, 3, 1):
        distance = (offset + hue) % 6
        channels.append(value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return (torch.stack(channels, dim=3) * 255.999).to(torch.uint8)


def adjust_sharpness(images: UInt8[Tensor, "b h w c"], factors: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """0 gives the picture smoothed but for its border, 1 the picture itself, 2 one that is sharper."""
    channels = images.shape[3]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    smooth = images.clone()
    inner = F.conv2d(images.permute(0, 3, 1, 2).float(), kernel, groups=channels)
    smooth[:, 1:-1, 1:-1] = inner.round().to(torch.uint8).permute(0, 2, 3, 1)
    return _blend(images, smooth, factors)


def posterize(images: UInt8[Tensor, "b h w c"], bits: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """Keep the highest `bits` (0 to 8) of every value."""
    mask = 256 - 2 ** (8 - bits.to(torch.int64))
    return (images & mask[:, None, None, None]).to(torch.uint8)


def solarize(images: UInt8[Tensor, "b h w c"], thresholds: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    """Invert every value of at least the threshold."""
    return torch.where(images >= thresholds[:, None, None, None], 255 - images, images)


def autocontrast(images: UInt8[Tensor, "b h w c"]) -> UInt8[Tensor, "b h w c"]:
    """Stretch every channel to 0..255; a constant channel stays as it is."""
    low, high = (extreme(images, dim=(1, 2), keepdim=True).float() for extreme in (torch.amin, torch.amax))
    is_flat = low == high
    low, scale = torch.where(is_flat, 0, low), torch.where(is_flat, 1, 255 / (high - low).clamp(min=1))
    return ((images - low) * scale).clamp(0, 255).to(torch.uint8)


def equalize(images: UInt8[Tensor, "b h w c"]) -> UInt8[Tensor, "b h w c"]:
    """Make the histogram of every channel flat, as far as a look-up table can."""
    batch, height, width, channels = images.shape
    values = images.permute(0, 3, 1, 2).reshape(batch * channels, -1).to(torch.int64)
    histogram = torch.zeros(len(values), 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    brightest = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = (height * width - brightest) // 255
    table = (histogram.cumsum(dim=1) + step // 2) // step.clamp(min=1)
    table = F.pad(table, (1, 0))[:, :-1].clamp(0, 255)
    equalized = torch.where(step == 0, values, table.gather(1, values))
    return equalized.to(torch.uint8).view(batch, channels, height, width).permute(0, 2, 3, 1)


def transform(images: UInt8[Tensor, "b h w c"], matrices: Float[Tensor, "b 2 3"]) -> UInt8[Tensor, "b h w c"]:
    """Give every pixel the value of its nearest neighbour at `matrix @ (x, y, 1)`, black where that lies outside.

    Args:
        matrices: from a pixel's place in the result to that in the source, both in pixels from the centre, x rightwards
            and y downwards.
    """
    batch, height, width, channels = images.shape
    device = images.device
    y, x = torch.meshgrid(
        torch.arange(height, device=device) - (height - 1) / 2,
        torch.arange(width, device=device) - (width - 1) / 2,
        indexing="ij",
    )
    places = torch.stack([x, y, torch.ones_like(x)]).view(3, -1)
    source = matrices @ places  # [batch, 2, height * width]
    column = (source[:, 0] + (width - 1) / 2).round().to(torch.int64)
    row = (source[:, 1] + (height - 1) / 2).round().to(torch.int64)
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index: Int[Tensor, "b pixels"] = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    moved = images.view(batch, -1, channels).gather(1, index[:, :, None].expand(-1, -1, channels))
    return (moved * is_inside[:, :, None]).view(batch, height, width, channels)


def _grey(images: UInt8[Tensor, "b h w c"]) -> UInt8[Tensor, "b h w 1"]:
    if images.shape[3] != 3:
        return images[..., :1]
    red, green, blue = images.unbind(dim=3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)[..., None]


def _blend(images: UInt8[Tensor, "b h w c"], others: Tensor, share: Float[Tensor, " b"]) -> UInt8[Tensor, "b h w c"]:
    share = share[:, None, None, None]
    return (share * images + (1 - share) * others).clamp(0, 255).to(torch.uint8)
