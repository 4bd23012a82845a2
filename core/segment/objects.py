"""An object that a prompt has found: its mask at the picture's own resolution, and what is left of it beside others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.segment.calibration import Calibration
from core.segment.candidates import Judged, shortlist
from core.segment.masks import soft_iou
from core.segment.questions import EncodedImage
from core.segment.regions import Region, evidence, presence_of, sample, sample_places
from core.segment.results import Candidate, CroppedMask, Instance

# Two answers to one prompt that overlap more than this are one object.
_SAME_OBJECT = 0.6
# Objects of different prompts that overlap less than this, and neither lies inside the other, meet at an edge.
_SAME_NAME, _NESTED = 0.5, 0.8
# Pixels whose logits are worked out at a time: what bounds the memory of drawing.
_PIXELS_AT_ONCE = 2**18


@dataclass(eq=False, kw_only=True)
class FoundObject:
    """A region on its way to becoming an instance of the prompt with the number `prompt`.

    Attributes:
        picture: the picture, or the window of it, that the region was seen in.
        offered: what SAM 2 has offered for the region so far; of the masks only that of `best`, its choice, is kept.
    """

    prompt: int
    region: Region
    picture: EncodedImage
    offered: list[Candidate] = field(default_factory=list)
    best: Judged | None = None
    why: str = ""
    evidence: tuple[float, ...] = ()
    presence: float = 0.0
    cropped: CroppedMask | None = None

    @property
    def mask(self) -> CroppedMask:
        assert self.cropped is not None, "it has not been drawn"
        return self.cropped

    @property
    def quality(self) -> float:
        return self.best.candidate.score if self.best else self._coarse_agreement

    @property
    def score(self) -> float:
        return self.presence * self.quality

    @property
    def _coarse_agreement(self) -> float:
        return soft_iou(self.region.mask, self.region.shares)

    def weigh(self, calibration: Calibration) -> None:
        """Work out the evidence that it is there, and the probability."""
        agreement = self.best.candidate.agreement if self.best else self._coarse_agreement
        self.evidence = evidence(self.region, agreement)
        self.presence = presence_of(self.evidence, calibration)

    def highest_presence(self, calibration: Calibration) -> float:
        """The probability that it is there, whatever SAM 2 may answer."""
        return max(presence_of(evidence(self.region, fit), calibration) for fit in (0.0, 1.0))

    def draw(self, size: tuple[int, int], calibration: Calibration) -> None:
        """The final mask, at the resolution of the picture of this size (height, width)."""
        window = self.region.window
        bits = np.empty((window.height, window.width), bool)
        columns = np.arange(window.width)
        for band in _bands(bits.shape):
            rows = np.arange(band.start, band.stop)
            bits[band] = self.logits(rows, columns, calibration, sample) > 0
        self.cropped = CroppedMask(bits, window.left, window.top, size).tight()
        if self.best is None:
            self.why = self.why or "SAM 2 was not asked"

    def logits(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        calibration: Calibration,
        sampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Logits at pixels of the object's window, taken from the models' grids by `sample` or `sample_places`.

        They are not kept: at the picture's resolution they are the largest thing of an answer.
        """
        region, window = self.region, self.region.window
        y, x = (rows + 0.5) / window.height, (columns + 0.5) / window.width
        edge = float(np.log(region.threshold / (1 - region.threshold)))
        # Near the region's own cells the heatmap decides; elsewhere there is nothing of this object.
        apart = np.where(_grown(region.mask), region.logits - edge, -8)
        cells = region.mask.shape[0]
        coarse = sampled(np.clip(apart, -8, 8), y * cells, x * cells)
        if self.best is None:
            return coarse
        low = self.best.logits.shape[0]
        return sampled(self.best.logits, y * low, x * low) + calibration.blend * coarse

    def instance(self) -> Instance:
        """What is answered of it."""
        return Instance(
            cropped=self.mask.tight(),
            score=self.score,
            quality=self.quality,
            presence=self.presence,
            evidence=self.evidence,
            source="coarse" if self.best is None else "sam2",
            why=self.why,
            candidates=shortlist(self.offered),
            zoomed=self.region.zoomed,
        )


def without_doubles(objects: Sequence[FoundObject]) -> list[FoundObject]:
    """Of two answers to one prompt that are the same object, the surer."""
    kept: list[FoundObject] = []
    for one in sorted(objects, key=lambda each: each.score, reverse=True):
        doubles = (
            other.prompt == one.prompt
            and one.mask.overlap(other.mask) > _SAME_OBJECT * min(one.mask.area, other.mask.area)
            for other in kept
        )
        if not any(doubles):
            kept.append(one)
    return sorted(kept, key=lambda one: one.prompt)


def resolve_overlaps(objects: Sequence[FoundObject], calibration: Calibration) -> None:
    """Where two different objects meet, each pixel goes to the one whose logits are higher there."""
    for number, one in enumerate(objects):
        for other in objects[number + 1 :]:
            mine, theirs = one.mask, other.mask
            both = mine.overlap(theirs)
            if not both or both > _NESTED * min(mine.area, theirs.area) or mine.iou(theirs) > _SAME_NAME:
                continue
            _divide(one, other, calibration)


def _divide(one: FoundObject, other: FoundObject, calibration: Calibration) -> None:
    mine, theirs = one.mask, other.mask
    where = mine.shared(theirs)
    assert where is not None
    ours, others = mine.bits[where[0]], theirs.bits[where[1]]
    left, top = max(mine.left, theirs.left), max(mine.top, theirs.top)
    for band in _bands(ours.shape):
        rows, columns = np.nonzero(ours[band] & others[band])
        if not len(rows):
            continue
        here, there = (
            each.logits(
                rows + band.start + top - each.region.window.top,
                columns + left - each.region.window.left,
                calibration,
                sample_places,
            )
            for each in (one, other)
        )
        ahead = here >= there
        ours[band][rows, columns] = ahead
        others[band][rows, columns] = ~ahead


def _bands(shape: tuple[int, int]) -> Iterator[slice]:
    """The rows of a rectangle, a few at a time."""
    height, width = shape
    step = max(1, _PIXELS_AT_ONCE // max(1, width))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _grown(mask: np.ndarray) -> np.ndarray:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    wide = grown.copy()
    wide[:, 1:] |= grown[:, :-1]
    wide[:, :-1] |= grown[:, 1:]
    return wide
