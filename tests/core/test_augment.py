import pytest
import torch
from torchvision.transforms import RandomErasing, v2
from torchvision.transforms import functional as tv

from core import augment as ours
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


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chw(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1)


def test_given_pictures_are_mirrored_and_no_others() -> None:
    chosen = torch.arange(50) % 3 == 0
    mirrored = crop_and_flip(IMAGES, torch.arange(50), padding=0, flip=chosen, generator=generator())
    assert torch.equal(mirrored[chosen], IMAGES[chosen].flip(2))
    assert torch.equal(mirrored[~chosen], IMAGES[~chosen])


def test_color_jitter_equals_torchvisions_steps_in_each_pictures_order() -> None:
    order, amounts = ours.draw_color_jitter(50, 0.4, generator())
    changed = ours.apply_color_jitter(IMAGES, order, amounts)
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for row in range(50):
        expected = chw(IMAGES[row])
        for step in order[row].tolist():
            expected = steps[step](expected, float(amounts[row, step]))
        difference = (chw(changed[row]).int() - expected.int()).abs()
        assert float((difference > 2).float().mean()) < 0.01


def test_color_jitter_draws_within_torchvisions_ranges() -> None:
    order, amounts = ours.draw_color_jitter(4000, 0.4, generator())
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    for column, (low, high) in enumerate((jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)):
        values = amounts[:, column]
        assert low <= float(values.min()) < low + 0.01 and high - 0.01 < float(values.max()) <= high
    assert len({tuple(row) for row in order.tolist()}) == 24


def test_erasing_equals_torchvisions_erase_and_its_boxes_have_the_same_sizes() -> None:
    colour = torch.tensor([1, 2, 3], dtype=torch.uint8)
    erased = ours.erase(IMAGES, 0.5, colour, generator())
    boxes = ours.draw_boxes(50, 12, 12, 0.5, generator())
    for row, (top, left, bottom, right) in enumerate(boxes.tolist()):
        expected = tv.erase(chw(IMAGES[row]), top, left, bottom - top, right - left, colour[:, None, None])
        assert torch.equal(chw(erased[row]), expected)
    ours_many = ours.draw_boxes(4000, 32, 32, 1.0, generator())
    picture = torch.zeros(3, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor(
            [RandomErasing.get_params(picture, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(4000)]
        ).float()
    heights, widths = ours_many[:, 2] - ours_many[:, 0], ours_many[:, 3] - ours_many[:, 1]
    for mine, reference in ((ours_many[:, 0], 0), (ours_many[:, 1], 1), (heights, 2), (widths, 3)):
        mine = mine.float()
        assert float(mine.mean()) == pytest.approx(float(theirs[:, reference].mean()), rel=0.05)
        assert float(mine.std()) == pytest.approx(float(theirs[:, reference].std()), rel=0.05)
    assert int(ours_many[:, 2:].max()) == 32
    assert float((ours.draw_boxes(4000, 32, 32, 0.3, generator())[:, 2] > 0).float().mean()) == pytest.approx(
        0.3, abs=0.03
    )


def test_mixup_equals_torchvisions_with_each_pictures_share() -> None:
    labels = torch.arange(50) % 10
    share = torch.linspace(0, 1, 50)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    mixed, soft = ours.apply_mix(IMAGES, targets, share, torch.zeros(50, 4, dtype=torch.int64))
    theirs = v2.MixUp(num_classes=10)
    pixels = IMAGES.float()
    for row in range(50):
        parameters = {"lam": float(share[row]), "labels": labels, "batch_size": 50}
        torch.testing.assert_close(mixed[row], theirs.transform(pixels, parameters)[row], rtol=0, atol=1e-3)
        torch.testing.assert_close(soft[row], theirs.transform(labels, parameters)[row])


def test_cutmix_equals_torchvisions_with_each_pictures_box() -> None:
    labels = torch.arange(50) % 10
    kept = torch.linspace(0, 1, 50)
    centre = torch.randint(0, 12, (50, 2), generator=generator())
    boxes = ours.cutmix_boxes(kept, centre, 12, 12)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    mixed, soft = ours.apply_mix(IMAGES, targets, None, boxes)
    assert mixed.dtype == torch.uint8
    for row in range(50):
        with pytest.MonkeyPatch.context() as patch:  # torchvision draws where we are given
            draws = iter((centre[row, 1:], centre[row, :1]))
            patch.setattr(torch, "randint", lambda *a, draws=draws, **k: next(draws))
            theirs = v2.CutMix(num_classes=10)
            patch.setattr(theirs._dist, "sample", lambda *a, row=row: kept[row])
            parameters = theirs.make_params([IMAGES.permute(0, 3, 1, 2)])
        parameters |= {"labels": labels, "batch_size": 50}
        assert torch.equal(chw(mixed[row]), theirs.transform(IMAGES.permute(0, 3, 1, 2), parameters)[row])
        torch.testing.assert_close(soft[row], theirs.transform(labels, parameters)[row])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_draws_for_every_picture_and_keeps_labels_whole(mixup: float, cutmix: float) -> None:
    images = IMAGES.repeat(8, 1, 1, 1)
    labels = torch.arange(400) % 10

    def mixed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return ours.mix(images, labels, 10, mixup_alpha=mixup, cutmix_alpha=cutmix, generator=generator(seed))

    pixels, targets = mixed(0)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(400))
    shares = targets.gather(1, labels[:, None]).unique()
    assert len(shares) > (100 if mixup else 30)
    assert pixels.is_floating_point() == (mixup > 0)
    assert all(torch.equal(a, b) for a, b in zip((pixels, targets), mixed(0), strict=True))
    assert not torch.equal(targets, mixed(1)[1])
    if mixup and cutmix:  # about half of them have a whole-numbered, cut picture
        whole = (pixels == pixels.round()).flatten(1).all(dim=1).float().mean()
        assert 0.4 < float(whole) < 0.6
