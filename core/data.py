"""Labelled pictures as one uint8 array and one int64 array: where they come from is `core.readers`' business."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8


class DataError(ValueError):
    """The data cannot be used; the message names the file and the row, and what would help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """Pictures of one size with their labels.

    images: uint8 `[N, H, W, C]`, row-major, sRGB 0-255.
    labels: int64 `[N]`, indices into `class_names`.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(
                f"images must be a uint8 array [N, H, W, C], got {self.images.dtype} with shape {self.images.shape}"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise DataError(
                f"labels must be an int64 array [{len(self.images)}], "
                f"got {self.labels.dtype} with shape {self.labels.shape}"
            )
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if outside.size:
            row = int(outside[0])
            raise DataError(f"row {row} has label {self.labels[row]}, outside 0..{len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "ImageSet":
        """The given rows, in the given order, as a set of their own."""
        return ImageSet(images=self.images[rows], labels=self.labels[rows], class_names=self.class_names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Training, validation and test pictures. Choices are made on `val`; `test` is for the finalists, once.

    mean, std: per channel, of `train`, on pixel values scaled to [0, 1].
    source: where the pictures came from, in words fit for a run record.
    """

    name: str
    source: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names


def make_dataset(*, name: str, source: str, train: ImageSet, test: ImageSet, val: ImageSet | None = None) -> Dataset:
    """Measure the normalisation on the training part; without `val`, a stratified tenth of that is held out first."""
    if val is None:
        train, val = hold_out(train)
    mean, std = channel_statistics(train.images)
    return Dataset(name=name, source=source, train=train, val=val, test=test, mean=mean, std=std)


def hold_out(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The set without a stratified tenth of it, and that tenth; always the same one.

    Raises:
        DataError: a class has fewer than two pictures.
    """
    kept, held_out = stratified_split(images.labels, 0.1, seed=0)
    return images.take(kept), images.take(held_out)


def stratified_split(
    labels: Int64[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held_out"]]:
    """Split row numbers in two, with the same share of every class (at least one row a class) in the second.

    Returns:
        kept, held_out: sorted row numbers; together every row once.

    Raises:
        DataError: a class has fewer than two rows, so that it cannot stand on both sides.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise DataError(f"class {label} has {len(rows)} picture; at least 2 are needed to hold one out")
        held_out.append(rows[: max(1, round(fraction * len(rows)))])
    chosen = np.sort(np.concatenate(held_out)).astype(np.int64)
    kept = np.setdiff1d(np.arange(len(labels), dtype=np.int64), chosen)
    return kept, chosen


def channel_statistics(images: UInt8[np.ndarray, "n h w c"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on [0, 1], exact: from a histogram of the 256 values."""
    value = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        mean = float(share @ value)
        means.append(mean)
        # A constant channel must not divide by zero: one grey level is then the unit.
        stds.append(max(float(np.sqrt(share @ (value - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(stds)


def subset(images: ImageSet, num_images: int, seed: int = 0) -> ImageSet:
    """A seeded random part, for smoke runs; the whole set where it has no more than `num_images`."""
    if num_images >= len(images):
        return images
    return images.take(np.sort(np.random.default_rng(seed).permutation(len(images))[:num_images]))


def names_of(num_classes: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Class names, or the numbers 0.. as text where there are none."""
    return tuple(names) if names else tuple(str(i) for i in range(num_classes))
