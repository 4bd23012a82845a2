import numpy as np
import pytest

from core.data import DataError, Dataset, ImageSet, channel_statistics, make_dataset, stratified_split, subset


def images(n: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def test_split_is_stratified_complete_and_repeatable() -> None:
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 100]).astype(np.int64)
    kept, held_out = stratified_split(labels, 0.1, seed=3)
    assert sorted([*kept, *held_out]) == list(range(200))
    assert np.bincount(labels[held_out]).tolist() == [1, 2, 3, 4, 10]
    again = stratified_split(labels, 0.1, seed=3)
    assert np.array_equal(held_out, again[1])
    assert not np.array_equal(held_out, stratified_split(labels, 0.1, seed=4)[1])


def test_split_refuses_a_class_of_one() -> None:
    with pytest.raises(DataError, match="class 1 has 1 picture"):
        stratified_split(np.array([0, 0, 1]), 0.5, seed=0)


def test_statistics_match_numpy() -> None:
    pixels = images(50)
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 1, 2)), rtol=1e-10)


def test_a_constant_channel_can_be_normalised() -> None:
    assert channel_statistics(np.zeros((2, 4, 4, 1), np.uint8)) == ((0.0,), (1 / 255,))


def test_validation_pictures_are_not_in_training(shapes: Dataset) -> None:
    train = {image.tobytes() for image in shapes.train.images}
    assert not train & {image.tobytes() for image in shapes.val.images}
    assert (len(shapes.train), len(shapes.val), len(shapes.test)) == (360, 40, 100)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), "uint8 array"),
        (images(2), np.zeros(3, np.int64), r"int64 array \[2\]"),
        (images(2), np.zeros(2, np.int32), "int32"),
        (images(3), np.array([0, 7, 1]), r"row 1 has label 7, outside 0\.\.1"),
    ],
)
def test_wrong_arrays_are_named(pixels: np.ndarray, labels: np.ndarray, message: str) -> None:
    # The type checker of the tests would refuse the arrays before our own check sees them.
    check = ImageSet.__post_init__
    row = object.__new__(ImageSet)
    for name, value in {"images": pixels, "labels": labels, "class_names": ("a", "b")}.items():
        object.__setattr__(row, name, value)
    with pytest.raises(DataError, match=message):
        check(row)


def test_subset_is_seeded_and_never_larger() -> None:
    whole = ImageSet(images=images(10), labels=np.arange(10) % 2, class_names=("a", "b"))
    assert subset(whole, 20) is whole
    assert np.array_equal(subset(whole, 4).images, subset(whole, 4).images)
    assert len(subset(whole, 4)) == 4


def test_normalisation_is_measured_on_training_pictures_only() -> None:
    dark = ImageSet(images=np.zeros((20, 4, 4, 3), np.uint8), labels=np.arange(20) % 2, class_names=("a", "b"))
    bright = ImageSet(images=np.full((20, 4, 4, 3), 255, np.uint8), labels=dark.labels, class_names=("a", "b"))
    assert make_dataset(name="x", source="x", train=dark, test=bright).mean == (0, 0, 0)
