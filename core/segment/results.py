"""The answer to a prompt, as data: masks, boxes, scores, and why they are what they are."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image as PillowImage

# How far, in pixels, points may be from a line that are taken to lie on it.
_STRAIGHT = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class CroppedMask:
    """A mask without the empty pixels around it, so that many on a large picture take little memory.

    bits: bool `[rows, columns]`. left, top: where they lie. size: height and width of the picture.
    """

    bits: Bool[np.ndarray, "rows columns"]
    left: int
    top: int
    size: tuple[int, int]

    @classmethod
    def from_full(cls, mask: Bool[np.ndarray, "height width"]) -> "CroppedMask":
        return cls(mask, 0, 0, (mask.shape[0], mask.shape[1])).tight()

    def tight(self) -> "CroppedMask":
        """The same mask with no empty row or column at its edges, in memory of its own."""
        rows, columns = np.flatnonzero(self.bits.any(1)), np.flatnonzero(self.bits.any(0))
        if not len(rows):
            return CroppedMask(np.zeros((0, 0), bool), 0, 0, self.size)
        bits = self.bits[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        return CroppedMask(bits, self.left + int(columns[0]), self.top + int(rows[0]), self.size)

    @property
    def area(self) -> int:
        return int(self.bits.sum())

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels; the last two are exclusive."""
        rows, columns = self.bits.shape
        return self.left, self.top, self.left + columns, self.top + rows

    def full(self) -> Bool[np.ndarray, "height width"]:
        """The mask over the whole picture."""
        mask = np.zeros(self.size, bool)
        rows, columns = self.bits.shape
        mask[self.top : self.top + rows, self.left : self.left + columns] = self.bits
        return mask

    def shared(self, other: "CroppedMask") -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
        """Where the two masks' rectangles overlap: rows and columns of this one's bits, and of the other's."""
        one, two = self.box_xyxy, other.box_xyxy
        left, top, right, bottom = max(one[0], two[0]), max(one[1], two[1]), min(one[2], two[2]), min(one[3], two[3])
        if left >= right or top >= bottom:
            return None
        mine, theirs = (
            (slice(top - m.top, bottom - m.top), slice(left - m.left, right - m.left)) for m in (self, other)
        )
        return mine, theirs

    def overlap(self, other: "CroppedMask") -> int:
        """Number of pixels in both."""
        where = self.shared(other)
        return 0 if where is None else int((self.bits[where[0]] & other.bits[where[1]]).sum())

    def iou(self, other: "CroppedMask") -> float:
        """Intersection over union, in [0, 1]; 0 for two empty masks."""
        both = self.overlap(other)
        union = self.area + other.area - both
        return both / union if union else 0.0

    def rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths: `{"size": [height, width], "counts": "..."}`, read by pycocotools."""
        from pycocotools import mask as coco

        height, width = self.size
        runs: Any = {"size": [height, width], "counts": self._runs()}
        encoded: Any = coco.frPyObjects(runs, height, width)
        return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}

    def _runs(self) -> list[int]:
        """Lengths of the empty and full runs in turn, down one column of the picture after the other."""
        height, width = self.size
        row, column = np.nonzero(np.diff(self.bits, axis=0, prepend=False, append=False))
        edges, times = np.unique((self.left + column) * height + self.top + row, return_counts=True)
        # A run that ends at the picture's bottom goes on where one begins at the top of the next column.
        runs = np.diff(edges[times == 1], prepend=0, append=height * width).tolist()
        return runs if runs[-1] or len(runs) == 1 else runs[:-1]

    def polygons(self, tolerance: float = 1.0) -> list[list[float]]:
        """Outlines as `[x1, y1, x2, y2, ...]` in pixels, COCO's way, at least one of a mask with pixels; without holes.

        Args:
            tolerance: how far, in pixels, an outline may stray from the mask (Douglas and Peucker, 1973); where that
                would take half of what is thin or tiny away, it does not stray.
        """
        from skimage.measure import approximate_polygon, find_contours

        outlines = []
        for contour in find_contours(np.pad(self.bits, 1).astype(float), 0.5):
            area = _enclosed(contour)
            if area < 0:  # a hole
                continue
            simple = approximate_polygon(contour, tolerance)
            if _enclosed(simple) < area / 2:
                simple = approximate_polygon(contour, _STRAIGHT)
            # A pixel's middle is half a pixel in; the padding moved everything by one.
            xy = simple[:-1, ::-1] + np.array([self.left - 0.5, self.top - 0.5])
            outlines.append([round(float(value), 1) for value in xy.ravel()])
        return outlines

    def png(self) -> bytes:
        """A one-channel PNG of the whole picture's size: 255 inside, 0 outside."""
        picture, buffer = PillowImage.fromarray(self.full().astype(np.uint8) * 255), BytesIO()
        # Runs of equal bytes are all that there is to find: half the time of a search for more, and no larger a file.
        picture.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        return buffer.getvalue()


def _enclosed(closed: Float[np.ndarray, "points 2"]) -> float:
    """The area within a closed line of (row, column); negative for a hole, whose line runs in the other sense."""
    return float(np.sum(closed[:-1, 1] * closed[1:, 0] - closed[1:, 1] * closed[:-1, 0])) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One mask that SAM 2 offered, and how it was judged.

    kind: what SAM 2 was asked with, such as `box` or `box+points`. index: which of its masks.
    agreement: soft IoU with the heatmap. predicted_iou: by SAM 2. stability: of its edge. leakage: share of the mask
    where the heatmap is cold. score: all of these together. All in [0, 1].
    """

    kind: str
    index: int
    agreement: float
    predicted_iou: float
    stability: float
    leakage: float
    score: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Instance:
    """One object.

    source: `sam2`, or `coarse` where SAM 2 was not asked or not believed; `why` says which and by what measure.
    presence: the probability that it is what the prompt names, from the `evidence`. quality: of its mask, in [0, 1].
    score: both together. candidates: SAM 2's best offers, the best first. zoomed: whether a closer look was taken.
    """

    cropped: CroppedMask
    score: float
    quality: float
    presence: float
    evidence: tuple[float, ...]
    source: Literal["sam2", "coarse"]
    why: str
    candidates: tuple[Candidate, ...] = ()
    zoomed: bool = False

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        return self.cropped.full()

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        return self.cropped.box_xyxy

    @property
    def area(self) -> int:
        return self.cropped.area


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptResult:
    """The answer to one prompt.

    found: whether the picture shows it. presence: the probability of that, in [0, 1].
    reason: why nothing was found; None otherwise.
    threshold: the share of the heatmap that was taken for the edge of the coarse mask.
    heatmap: probabilities of the whole picture squeezed into a square, `[size, size]`.
    """

    prompt: str
    found: bool
    presence: float
    reason: str | None
    threshold: float
    heatmap: Float[np.ndarray, "size size"] = field(repr=False)
    instances: tuple[Instance, ...] = ()
    picture_size: tuple[int, int] = (0, 0)

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """All objects together."""
        return union((instance.cropped for instance in self.instances), self.picture_size)


def union(masks: Iterable[CroppedMask], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """All pixels in any of the masks."""
    whole = np.zeros(size, bool)
    for mask in masks:
        left, top, right, bottom = mask.box_xyxy
        whole[top:bottom, left:right] |= mask.bits
    return whole
