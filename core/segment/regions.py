"""From a heatmap to regions: the threshold, the objects, and how probable each of them is. Without models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from core.segment.calibration import Calibration
from core.segment.masks import box_xyxy, hysteresis, split
from core.segment.options import SegmentOptions

# A mask of a few cells of the heatmap is no object.
_MIN_CELLS = 4
_BINS = 256
# So many are judged even for a caller who wants fewer: the surest need not be the largest.
_LEAST_REGIONS = 20
# A region of which the prompt has found more than this share is not news.
_KNOWN = 0.3
# The least side of an object, as a share of the picture's, that a window is made for: a heatmap does not tell less.
_LEAST_SIDE = 0.1
# A closer look whose mean logit is lower than the first one's by more than this does not replace it.
_LESS_SURE, _WEIGHT_IF_LESS_SURE = 3.0, 0.5
# What comes within so many cells of a window's edge is taken to go on beyond it.
_EDGE = 2
# How far an object may be from the middle of its window, as a share of the window's side.
_OFF_CENTRE = 0.15


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of the picture, in pixels; the last two edges are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Region:
    """What may be one object, on the heatmap's grid over a window of the picture.

    logits: of the heatmap, after the temperature; where another object of the prompt is nearer they are far below zero.
    mask: the coarse mask. whole, closer: mean logit inside the mask, in the whole picture's heatmap and in that of the
    closer look; the same where there was none. contrast, relative: how far `whole` is above the mean logit of the
    hottest rival of the prompt, of those that differ in kind and of those that differ in size; 0 where it has none.
    faint: a mere guess about where the heatmap peaks, for a closer look.
    """

    window: Window
    logits: Float[np.ndarray, "size size"]
    mask: Bool[np.ndarray, "size size"]
    threshold: float
    peak: float
    whole: float
    closer: float
    contrast: float = 0.0
    relative: float = 0.0
    zoomed: bool = False
    faint: bool = False

    @property
    def shares(self) -> Float[np.ndarray, "size size"]:
        return to_shares(self.logits)

    @property
    def box(self) -> np.ndarray:
        """The mask's box in pixels of the picture: left, top, right, bottom."""
        size = self.mask.shape[0]
        scale = np.array([self.window.width, self.window.height] * 2) / size
        return box_xyxy(self.mask) * scale + np.array([self.window.left, self.window.top] * 2)


def to_shares(logits: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def best_threshold(shares: np.ndarray, *, floor: float) -> float:
    """The threshold whose mask has the largest expected IoU, if every pixel is right with its own probability.

    Of all masks `{share >= t}`, the one with the largest `sum of shares inside / (pixels inside + sum of shares
    outside)`: the soft IoU that candidates are judged by as well. It needs no constant, follows the heatmap's own
    scale, and is the plug-in rule for Jaccard losses (Nowozin, 2014).
    """
    counts, edges = np.histogram(shares, bins=_BINS, range=(0, 1))
    sums, _ = np.histogram(shares, bins=_BINS, range=(0, 1), weights=shares)
    inside, mass = counts[::-1].cumsum()[::-1], sums[::-1].cumsum()[::-1]
    agreement = mass / np.maximum(inside + mass[0] - mass, 1e-9)
    allowed = edges[:-1] >= floor
    agreement = np.where(allowed & (inside > 0), agreement, -1)
    return max(floor, float(edges[int(agreement.argmax())]))


def find_regions(
    logits: Float[np.ndarray, "size size"], window: Window, options: SegmentOptions, calibration: Calibration
) -> tuple[float, list[Region]]:
    """The threshold, and the regions above it, the largest first; none where the heatmap stays cold.

    Of more than `max_instances` and more than 20, the largest.
    """
    logits = logits / calibration.temperature
    shares = to_shares(logits)
    peak = float(shares.max())
    if options.threshold == "auto":
        threshold = best_threshold(shares, floor=calibration.floor)
        above = hysteresis(shares, threshold, max(threshold, calibration.seed * peak))
    else:
        threshold = float(options.threshold)
        above = shares >= threshold
    if above.sum() < _MIN_CELLS:
        return threshold, []
    most = max(options.max_instances, _LEAST_REGIONS)
    parts = split(above, min_share=calibration.min_area, depth=calibration.neck, most=most)
    parts = [part for part in parts if part.sum() >= _MIN_CELLS]
    nearest = _nearest_part(parts) if len(parts) > 1 else np.zeros(above.shape, int)
    regions = []
    for index, part in enumerate(parts):
        inside = float(logits[part].mean())
        own = np.where(nearest == index, logits, np.minimum(logits, -8))
        regions.append(
            Region(
                window=window,
                logits=own,
                mask=part,
                threshold=threshold,
                peak=_logit_of(peak),
                whole=inside,
                closer=inside,
            )
        )
    return threshold, regions


def find_faint(
    logits: Float[np.ndarray, "size size"], window: Window, threshold: float, calibration: Calibration
) -> list[Region]:
    """For a prompt without regions: the place of the heatmap's peak, if it is worth a closer look.

    What is small or thin may be too faint for a mask at first; what the closer look does not show there is dropped.
    """
    logits = logits / calibration.temperature
    peak = float(logits.max())
    if to_shares(logits).max() < calibration.faint:
        return []
    row, column = np.unravel_index(int(logits.argmax()), logits.shape)
    rows, columns = np.mgrid[: logits.shape[0], : logits.shape[1]]
    around = np.hypot(rows - row, columns - column) <= _LEAST_SIDE / 2 * logits.shape[0]
    guess = np.where(around, np.maximum(logits, 1.0), -8.0)
    return [
        Region(
            window=window,
            logits=guess,
            mask=around,
            threshold=threshold,
            peak=peak,
            whole=peak,
            closer=peak,
            faint=True,
        )
    ]


def find_rivals(
    own: Sequence[Region],
    logits: Float[np.ndarray, "size size"],
    rivals: Float[np.ndarray, "rivals size size"],
    window: Window,
    options: SegmentOptions,
    calibration: Calibration,
) -> list[Region]:
    """Regions that the first look gave to a prompt's rivals, to be looked at again on the prompt's behalf.

    What is small may be taken for something alike, and only a closer look can tell.

    Args:
        own: the regions that the prompt has already. logits: its heatmap's. rivals: those of its rivals' heatmaps.
    """
    logits, pooled = logits / calibration.temperature, np.maximum(logits, rivals.max(axis=0))
    taken = np.any([region.mask for region in own], axis=0) if own else np.zeros(logits.shape, bool)
    _, regions = find_regions(pooled, window, options, calibration)
    return [
        replace(region, peak=float(logits.max()), whole=inside, closer=inside)
        for region in regions
        if (region.mask & taken).sum() < _KNOWN * region.mask.sum()
        for inside in (float(logits[region.mask].mean()),)
    ]


def closer_window(region: Region, size: tuple[int, int], calibration: Calibration) -> Window | None:
    """The square of the picture to look at more closely, or None where the region is large enough as it is."""
    height, width = size
    left, top, right, bottom = region.box
    side = max(right - left, bottom - top)
    if side >= calibration.zoom_below * min(height, width) or min(height, width) < 16:
        return None
    least = _LEAST_SIDE * min(height, width)
    reach = min(_snapped(max(calibration.zoom_context * max(side, least), 16)), height, width)
    step = max(1, reach // 8)
    start_x, start_y = (
        round(float(np.clip(round((low + high - reach) / 2 / step) * step, 0, length - reach)))
        for low, high, length in ((left, right, width), (top, bottom, height))
    )
    return Window(start_x, start_y, start_x + reach, start_y + reach)


def _snapped(side: float) -> int:
    """The next of a few sides, a fifth apart: prompts that find the same object then look through the same window."""
    return math.ceil(16 * 1.2 ** math.ceil(math.log(side / 16, 1.2) - 1e-9))


def look_closer(
    region: Region, window: Window, logits: Float[np.ndarray, "size size"], calibration: Calibration, threshold: float
) -> Region | None:
    """The region as the closer look shows it; None if that shows nothing in its place.

    Args:
        logits: of the closer look, after the temperature.
        threshold: 0 for an automatic one.
    """
    size = region.mask.shape[0]
    # The first look's heatmap in the closer one's frame.
    x = (np.arange(size) + 0.5) / size * window.width + window.left
    y = (np.arange(size) + 0.5) / size * window.height + window.top
    first = sample(
        region.logits,
        (y - region.window.top) / region.window.height * size,
        (x - region.window.left) / region.window.width * size,
    )
    fused = _closer_region(region, window, first, logits, calibration.closer_weight, calibration, threshold)
    if fused is not None and fused.closer < region.whole - _LESS_SURE:
        fused = _closer_region(region, window, first, logits, _WEIGHT_IF_LESS_SURE, calibration, threshold)
    return fused


def _closer_region(
    region: Region,
    window: Window,
    first: Float[np.ndarray, "size size"],
    logits: Float[np.ndarray, "size size"],
    weight: float,
    calibration: Calibration,
    threshold: float,
) -> Region | None:
    """The region in a mean of both looks, `weight` being the closer one's; None if there is nothing in its place."""
    fused = weight * logits + (1 - weight) * first
    shares = to_shares(fused)
    cut = threshold or best_threshold(shares, floor=calibration.floor)
    above = shares >= cut
    expected = first > min(0.0, math.log(region.threshold / (1 - region.threshold)))
    labels, _ = ndimage.label(above)  # pyright: ignore[reportGeneralTypeIssues]
    hits = np.bincount(labels[expected & above], minlength=labels.max() + 1)
    hits[0] = 0
    if hits.max(initial=0) < _MIN_CELLS:
        return None
    mask = np.isin(labels, np.flatnonzero(hits >= 0.2 * hits.max()))
    return replace(
        region,
        window=window,
        logits=np.where(mask | (labels == 0), fused, np.minimum(fused, -8)),
        mask=mask,
        threshold=cut,
        closer=float(logits[mask].mean()),
        zoomed=True,
    )


def fits_badly(region: Region, size: tuple[int, int]) -> bool:
    """Whether another window would show the region better: this one cuts it off, or has it far from its middle."""
    window = region.window
    left, top, right, bottom = region.box
    inside = window.left > 0 and window.top > 0 and window.right < size[1] and window.bottom < size[0]
    off_x = abs(left + right - window.left - window.right) / 2 / window.width
    off_y = abs(top + bottom - window.top - window.bottom) / 2 / window.height
    return bool(inside and max(off_x, off_y) > _OFF_CENTRE) or is_cut_off(region, size)


def is_cut_off(region: Region, size: tuple[int, int]) -> bool:
    """Whether the mask reaches an edge of the window that is not the picture's own; `size`: its height and width."""
    window, mask = region.window, region.mask
    return bool(
        (window.top > 0 and mask[:_EDGE].any())
        or (window.left > 0 and mask[:, :_EDGE].any())
        or (window.bottom < size[0] and mask[-_EDGE:].any())
        or (window.right < size[1] and mask[:, -_EDGE:].any())
    )


def evidence(region: Region, agreement: float) -> tuple[float, ...]:
    """What presence is judged by; see `core.segment.calibration.EVIDENCE`."""
    logits = (region.peak, region.whole, region.contrast, region.relative, region.closer)
    return *(float(np.clip(value, -8, 8)) for value in logits), agreement


def with_contrast(
    region: Region,
    logits: Float[np.ndarray, "size size"],
    kinds: Sequence[Float[np.ndarray, "size size"]],
    sizes: Sequence[Float[np.ndarray, "size size"]],
    calibration: Calibration,
) -> Region:
    """The region held against the prompt's rivals; heatmaps of the whole picture, before the temperature.

    Args:
        kinds: heatmaps of the rivals that name another kind of thing. sizes: of those that say another size.
    """
    own = float(logits[region.mask].mean())
    contrast, relative = (
        (own - max(float(rival[region.mask].mean()) for rival in rivals)) / calibration.temperature if rivals else 0.0
        for rivals in (kinds, sizes)
    )
    return replace(region, contrast=contrast, relative=relative)


def presence_of(seen: tuple[float, ...], calibration: Calibration) -> float:
    """The probability that a region with this evidence is what the prompt names."""
    value = calibration.presence_bias + float(np.dot(calibration.presence_weights, seen))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))


def sample(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values of a grid at places given in cells (a cell's middle is at one half); beyond the edge, the edge's.

    The same as `interpolate(mode="bilinear", align_corners=False)`, for any rectangle of the result.
    """
    low, high, share = _taps(rows, grid.shape[0])
    band = grid[low] * (1 - share)[:, None] + grid[high] * share[:, None]
    low, high, share = _taps(columns, grid.shape[1])
    return band[:, low] * (1 - share) + band[:, high] * share


def sample_places(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """As `sample`, to the bit, at single places: one for each of the `rows` with its column."""
    low, high, share = _taps(rows, grid.shape[0])
    left, right, across = _taps(columns, grid.shape[1])
    first, second = (grid[low, side] * (1 - share) + grid[high, side] * share for side in (left, right))
    return first * (1 - across) + second * across


def _taps(places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place the two cells around it, and the second one's share."""
    at = np.clip(places - 0.5, 0, length - 1)
    low = np.minimum(at.astype(int), max(length - 2, 0))
    return low, np.minimum(low + 1, length - 1), (at - low).astype(np.float32)


def _nearest_part(parts: list[np.ndarray]) -> np.ndarray:
    distances = [np.asarray(ndimage.distance_transform_edt(~part)) for part in parts]
    return np.stack(distances).argmin(0)


def _logit_of(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))
