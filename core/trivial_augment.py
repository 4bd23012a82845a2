"""TrivialAugment Wide (Mueller & Hutter, 2021): a random operation a picture, at a random strength."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from core import pixel_ops

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
NUM_STRENGTHS = 31

_SIGNED = torch.tensor([name not in ("Posterize", "Solarize") for name in OPERATIONS])


def trivial_augment(
    images: UInt8[Tensor, "batch height width channels"], generator: torch.Generator
) -> UInt8[Tensor, "batch height width channels"]:
    """Change every picture by an operation drawn for it; `generator` is a CPU generator."""
    operations, magnitudes = draw(len(images), generator)
    return apply(images, operations.to(images.device), magnitudes.to(images.device))


def draw(batch: int, generator: torch.Generator) -> tuple[Int64[Tensor, " batch"], Float[Tensor, " batch"]]:
    """An operation (an index of `OPERATIONS`) and its magnitude for every picture."""
    operations = torch.randint(len(OPERATIONS), (batch,), generator=generator)
    strengths = torch.randint(NUM_STRENGTHS, (batch,), generator=generator)
    negative = torch.randint(2, (batch,), generator=generator).bool()
    magnitudes = magnitude_table()[operations, strengths]
    return operations, torch.where(negative & _SIGNED[operations], -magnitudes, magnitudes)


def magnitude_table() -> Float[Tensor, "operations strengths"]:
    """The magnitude of every operation at every strength; 0 where it has none."""
    steps = torch.linspace(0, 1, NUM_STRENGTHS)
    rows = {
        "ShearX": 0.99 * steps,
        "ShearY": 0.99 * steps,
        "TranslateX": 32 * steps,
        "TranslateY": 32 * steps,
        "Rotate": 135 * steps,
        "Brightness": 0.99 * steps,
        "Color": 0.99 * steps,
        "Contrast": 0.99 * steps,
        "Sharpness": 0.99 * steps,
        "Posterize": 8 - (6 * steps).round(),
        "Solarize": 255 * (1 - steps),
    }
    return torch.stack([rows.get(name, torch.zeros(NUM_STRENGTHS)) for name in OPERATIONS])


def apply(
    images: UInt8[Tensor, "batch height width channels"],
    operations: Int64[Tensor, " batch"],
    magnitudes: Float[Tensor, " batch"],
) -> UInt8[Tensor, "batch height width channels"]:
    """Apply to every picture its operation."""
    result = images.clone()
    for index, name in enumerate(OPERATIONS):
        rows = (operations == index).nonzero().flatten()
        if len(rows) and name != "Identity":
            result[rows] = _operate(name, images[rows], magnitudes[rows])
    return result


def _operate(name: str, images: Tensor, magnitudes: Tensor) -> Tensor:
    if name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        return pixel_ops.transform(images, _matrices(name, magnitudes, *images.shape[1:3]))
    match name:
        case "Brightness":
            return pixel_ops.adjust_brightness(images, 1 + magnitudes)
        case "Color":
            return pixel_ops.adjust_saturation(images, 1 + magnitudes)
        case "Contrast":
            return pixel_ops.adjust_contrast(images, 1 + magnitudes)
        case "Sharpness":
            return pixel_ops.adjust_sharpness(images, 1 + magnitudes)
        case "Posterize":
            return pixel_ops.posterize(images, magnitudes)
        case "Solarize":
            return pixel_ops.solarize(images, magnitudes)
        case "AutoContrast":
            return pixel_ops.autocontrast(images)
        case _:
            return pixel_ops.equalize(images)


def _matrices(name: str, magnitudes: Float[Tensor, " batch"], height: int, width: int) -> Float[Tensor, "batch 2 3"]:
    """From places in the result to places in the source. A shear leaves the top row, or the left column, in place."""
    matrices = torch.eye(2, 3, device=magnitudes.device).repeat(len(magnitudes), 1, 1)
    match name:
        case "ShearX":
            matrices[:, 0, 1], matrices[:, 0, 2] = magnitudes, magnitudes * (height / 2)
        case "ShearY":
            matrices[:, 1, 0], matrices[:, 1, 2] = magnitudes, magnitudes * (width / 2)
        case "TranslateX":
            matrices[:, 0, 2] = -magnitudes.trunc()
        case "TranslateY":
            matrices[:, 1, 2] = -magnitudes.trunc()
        case _:
            angles = magnitudes.deg2rad()
            matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
            matrices[:, 0, 1], matrices[:, 1, 0] = -angles.sin(), angles.sin()
    return matrices
