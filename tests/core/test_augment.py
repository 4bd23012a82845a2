import pytest
import torch
from torchvision.transforms import functional as tv

from core.augment import crop_and_flip, normalise

IMAGES = torch.randint(0, 256, (50, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augment(rows: torch.Tensor, padding: int, flip: bool, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return crop_and_flip(IMAGES, rows, padding=padding, flip=flip, generator=generator)


@pytest.mark.parametrize("padding", [0, 1, 4, 11])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_torchvisions_pad_crop_and_flip_image_by_image(padding: int, flip: bool) -> None:
    rows = torch.arange(50)
    augmented = augment(rows, padding, flip, seed=3)
    generator = torch.Generator().manual_seed(3)
    down, right = torch.randint(-padding, padding + 1, (2, 50, 1), generator=generator)
    mirrored = torch.randint(0, 2, (50, 1), generator=generator) * int(flip)
    for row in range(50):
        image = IMAGES[row].permute(2, 0, 1)
        if padding:
            image = tv.pad(image, [padding], padding_mode="reflect")
        image = tv.crop(image, padding + int(down[row]), padding + int(right[row]), 12, 12)
        image = tv.hflip(image) if mirrored[row] else image
        assert torch.equal(augmented[row], image.permute(1, 2, 0))


def test_every_picture_has_a_draw_of_its_own() -> None:
    same = augment(torch.zeros(200, dtype=torch.int64), 4, True, seed=0)
    distinct = {bytes(image.flatten().tolist()) for image in same}
    assert len(distinct) > 80  # of 9 x 9 x 2 equally likely views
    assert torch.equal(augment(torch.arange(50), 4, True, 1), augment(torch.arange(50), 4, True, 1))


def test_without_padding_and_flip_nothing_changes() -> None:
    rows = torch.tensor([4, 2, 9])
    assert torch.equal(augment(rows, 0, False, seed=0), IMAGES[rows])


def test_padding_as_wide_as_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="padding=12 must be smaller than the picture, 12x12"):
        augment(torch.arange(2), 12, False, seed=0)


def test_normalise_equals_torchvisions() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    ours = normalise(IMAGES, mean, std)
    theirs = tv.normalize(IMAGES.permute(0, 3, 1, 2) / 255, mean.tolist(), std.tolist())
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
