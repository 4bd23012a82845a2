"""Every operation, picture by picture, against torchvision's of the same name."""

from collections.abc import Callable

import pytest
import torch
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms import functional as tv
from torchvision.transforms.autoaugment import _apply_op

from core import pixel_ops, trivial_augment
from core.trivial_augment import OPERATIONS

_RANDOM = torch.Generator().manual_seed(0)
# Noise, gradients, a narrow range, flat colours, greys, black and white.
IMAGES = torch.cat(
    [
        torch.randint(0, 256, (20, 16, 16, 3), generator=_RANDOM),
        torch.arange(256).view(1, 16, 16, 1).expand(1, 16, 16, 3),
        torch.randint(100, 140, (5, 16, 16, 3), generator=_RANDOM),
        torch.randint(0, 256, (5, 1, 1, 3), generator=_RANDOM).expand(5, 16, 16, 3),
        torch.randint(0, 256, (5, 16, 16, 1), generator=_RANDOM).expand(5, 16, 16, 3),
        torch.tensor([0, 255]).view(2, 1, 1, 1).expand(2, 16, 16, 3),
    ]
).to(torch.uint8)


def chw(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high", "tolerance"),
    [
        (pixel_ops.adjust_brightness, tv.adjust_brightness, 0, 2, 0),
        (pixel_ops.adjust_contrast, tv.adjust_contrast, 0, 2, 1),
        (pixel_ops.adjust_saturation, tv.adjust_saturation, 0, 2, 0),
        (pixel_ops.adjust_hue, tv.adjust_hue, -0.5, 0.5, 1),
        (pixel_ops.adjust_sharpness, tv.adjust_sharpness, 0, 2, 1),
        (pixel_ops.solarize, tv.solarize, 0, 255, 0),
    ],
)
def test_changes_by_an_amount_equal_torchvisions(
    ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], low: float, high: float, tolerance: int
) -> None:
    amounts = torch.linspace(low, high, len(IMAGES))[torch.randperm(len(IMAGES), generator=_RANDOM)]
    changed = ours(IMAGES, amounts)
    assert changed.dtype == torch.uint8
    for image, amount, result in zip(IMAGES, amounts, changed, strict=True):
        difference = chw(result).int() - theirs(chw(image), float(amount)).int()
        assert int(difference.abs().max()) <= tolerance
        assert float((difference != 0).float().mean()) < 0.02


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_changes_without_an_amount_equal_torchvisions(name: str) -> None:
    for image, result in zip(IMAGES, getattr(pixel_ops, name)(IMAGES), strict=True):
        assert torch.equal(chw(result), getattr(tv, name)(chw(image)))


def test_trivial_augment_draws_from_torchvisions_table() -> None:
    table = trivial_augment.magnitude_table()
    space = TrivialAugmentWide()._augmentation_space(trivial_augment.NUM_STRENGTHS)
    assert tuple(space) == OPERATIONS
    for row, (magnitudes, signed) in zip(table, space.values(), strict=True):
        torch.testing.assert_close(row, magnitudes.float().expand(31), rtol=1e-5, atol=1e-4)
        assert signed or bool((row >= 0).all())
    operations, magnitudes = trivial_augment.draw(20_000, torch.Generator().manual_seed(0))
    assert torch.bincount(operations).min() > 1200  # of 20,000 / 14 expected
    for index, (name, (_, signed)) in enumerate(space.items()):
        assert bool((magnitudes[operations == index] < 0).any()) == signed, name


@pytest.mark.parametrize("operation", range(len(OPERATIONS)), ids=OPERATIONS)
def test_every_operation_equals_torchvisions(operation: int) -> None:
    name = OPERATIONS[operation]
    magnitudes = trivial_augment.magnitude_table()[operation].repeat(2)[: len(IMAGES)]
    if name not in ("Posterize", "Solarize"):
        magnitudes[1::2] *= -1
    changed = trivial_augment.apply(IMAGES, torch.full((len(IMAGES),), operation), magnitudes)
    for image, magnitude, result in zip(IMAGES, magnitudes, changed, strict=True):
        expected = _apply_op(chw(image), name, float(magnitude), InterpolationMode.NEAREST, None)
        differing = (chw(result).int() - expected.int()).abs() > 1
        assert float(differing.float().mean()) < 0.01, float(
            magnitude
        )  # a pixel half-way between two may go either way


def test_trivial_augment_changes_pictures_each_in_its_own_way() -> None:
    same = IMAGES[:1].expand(200, -1, -1, -1)
    changed = trivial_augment.trivial_augment(same, torch.Generator().manual_seed(0))
    assert len({bytes(image.flatten().tolist()) for image in changed}) > 100
    assert torch.equal(changed, trivial_augment.trivial_augment(same, torch.Generator().manual_seed(0)))
