"""The work on one picture, from prompts to masks: CLIPSeg says where, SAM 2 says exactly, and the two are compared.

Its order is written once, in `flow`, as a generator: it yields what it wants to know of the two models and is sent the
answers. `core.segment.pipeline` runs many flows together, so that what they ask at the same time is one call of the
model; a service can run the same flow against models that live elsewhere.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.segment.calibration import Calibration
from core.segment.candidates import Judged, choose, improve, judge, propose, shortlist
from core.segment.grounder import Image
from core.segment.masks import soft_iou
from core.segment.options import SegmentOptions
from core.segment.regions import (
    Region,
    Window,
    closer_window,
    evidence,
    find_faint,
    find_regions,
    find_rivals,
    fits_badly,
    is_cut_off,
    look_closer,
    presence_of,
    sample,
    sample_places,
    to_shares,
    with_contrast,
)
from core.segment.results import CroppedMask, Instance, PromptResult
from core.segment.sam2 import MaskPrompt
from core.segment.sam2_stills import Sam2Features

# Words that compare with the rest of the picture: a closer look, which leaves the rest out, must not be asked for them.
_RELATIVE = {"small", "large", "big", "little", "tiny", "huge"}
# How often a window that does not fit its object is moved or widened.
_MORE_LOOKS = 2
# Two answers to one prompt that overlap more than this are one object.
_SAME_OBJECT = 0.6
# Objects of different prompts that overlap less than this, and neither lies inside the other, meet at an edge.
_SAME_NAME, _NESTED = 0.5, 0.8
# Pixels whose logits are worked out at a time: what bounds the memory of drawing.
_PIXELS_AT_ONCE = 2**18


@dataclass(eq=False)
class EncodedImage:
    """A picture with what the models read of it, each filled when it is first needed."""

    image: Image
    grounded: Any = None
    encoded: Sam2Features | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.grounded, self.encoded)
        return self.image.nbytes + sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Heatmaps wanted: answered with logits `[prompts, size, size]`."""

    picture: EncodedImage
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """Masks wanted: answered with one `MaskCandidates` a prompt."""

    picture: EncodedImage
    prompts: tuple[MaskPrompt, ...]


Flow = Generator[list[Ground] | list[Decode], list[Any], list[PromptResult]]


@dataclass(eq=False, kw_only=True)
class _Object:
    """A region on its way to becoming an instance."""

    prompt: int
    region: Region
    picture: EncodedImage
    judged: list[Judged] = field(default_factory=list)
    best: Judged | None = None
    why: str = ""
    evidence: tuple[float, ...] = ()
    presence: float = 0.0
    cropped: CroppedMask | None = None


def flow(
    picture: EncodedImage,
    prompts: Sequence[str],
    options: SegmentOptions,
    calibration: Calibration,
    low_res_size: int,
) -> Flow:
    """The work on one picture: yields lists of `Ground` or `Decode`, is sent their answers, returns the results.

    A prompt that is given twice is worked on once, and has the same result in both places.

    Args:
        low_res_size: side of SAM 2's mask logits.
    """
    asked, prompts = prompts, tuple(dict.fromkeys(prompts))
    size = (picture.image.shape[0], picture.image.shape[1])
    whole = Window(0, 0, size[1], size[0])
    rivals = [calibration.rivals_of(prompt) for prompt in prompts]
    texts = list(dict.fromkeys((*prompts, *(text for alike in rivals for text in alike))))
    (answers,) = yield [Ground(picture, tuple(texts))]
    heatmaps = dict(zip(texts, answers, strict=True))
    views: dict[Window, EncodedImage] = {}
    thresholds, objects = [], []
    for number, prompt in enumerate(prompts):
        threshold, regions = find_regions(heatmaps[prompt], whole, options, calibration)
        thresholds.append(threshold)
        # With a threshold of the caller's own, nothing is answered that lies below it.
        doubtful = options.zoom and options.threshold == "auto"
        if doubtful and not regions:
            regions = find_faint(heatmaps[prompt], whole, threshold, calibration)
        if rivals[number]:
            # A closer look can tell a ring from a disc, but not a small one from a large one.
            kinds = [heatmaps[text] for text in rivals[number] if _alone(text) != _alone(prompt)]
            sizes = [heatmaps[text] for text in rivals[number] if _alone(text) == _alone(prompt)]
            if doubtful and kinds:
                regions += find_rivals(regions, heatmaps[prompt], np.stack(kinds), whole, options, calibration)
            regions = [with_contrast(one, heatmaps[prompt], kinds, sizes, calibration) for one in regions]
        objects += [_Object(prompt=number, region=region, picture=picture) for region in regions]
    if options.zoom:
        seen = yield from _look_closer(objects, picture, views, prompts, options, calibration)
        objects = [one for one in seen if one is not None]
    at_least = calibration.min_presence if options.min_presence is None else options.min_presence
    # SAM 2 need not be asked about what would be taken to be absent even if its mask fitted perfectly.
    hopeful = [one for one in objects if max(_presence(one, fit, calibration) for fit in (0.0, 1.0)) >= at_least]
    if options.refine and hopeful:
        yield from _refine(hopeful, calibration, low_res_size)
        if options.zoom:
            yield from _look_wider(hopeful, picture, views, prompts, options, calibration, low_res_size)
    for one in objects:
        agreement = one.best.candidate.agreement if one.best else soft_iou(one.region.mask, one.region.shares)
        one.evidence = evidence(one.region, agreement)
        one.presence = presence_of(one.evidence, calibration)
    kept = [one for one in hopeful if one.presence >= at_least]
    for one in kept:
        _draw(one, size, calibration)
    kept = [one for one in kept if _mask_of(one).area]
    kept = _without_doubles(kept)
    if options.resolve_overlaps:
        _resolve_overlaps(kept, calibration)
    results = []
    for number, prompt in enumerate(prompts):
        heatmap = to_shares(heatmaps[prompt] / calibration.temperature).astype(np.float32)
        surest = max((one.presence for one in objects if one.prompt == number), default=0.0)
        instances = sorted((_instance(one) for one in kept if one.prompt == number), key=lambda i: -i.score)
        instances = [instance for instance in instances if instance.area][: options.max_instances]
        reason = None if instances else _reason(heatmap, thresholds[number], surest, at_least)
        results.append(
            PromptResult(
                prompt=prompt,
                found=bool(instances),
                presence=surest,
                reason=reason,
                threshold=thresholds[number],
                heatmap=heatmap,
                instances=tuple(instances),
                picture_size=size,
            )
        )
    answered = dict(zip(prompts, results, strict=True))
    return [answered[prompt] for prompt in asked]


def _look_closer(
    objects: list[_Object],
    picture: EncodedImage,
    views: dict[Window, EncodedImage],
    prompts: Sequence[str],
    options: SegmentOptions,
    calibration: Calibration,
) -> Generator[list[Ground], list[Any], list[_Object | None]]:
    """Look closer at what is small: it is found again, or None. What the window does not fit is given another one.

    `views` keeps the windows of a picture, so that none is encoded twice.
    """
    size = (picture.image.shape[0], picture.image.shape[1])
    alone = [_alone(prompt) for prompt in prompts]
    fixed = 0.0 if options.threshold == "auto" else float(options.threshold)
    windows = {one: closer_window(one.region, size, calibration) for one in objects}
    found: dict[_Object, _Object | None] = {
        one: None if one.region.faint else one for one, window in windows.items() if window is None
    }
    for last in (False,) * _MORE_LOOKS + (True,):
        texts: dict[Window, dict[str, None]] = {}
        for one, window in windows.items():
            if one not in found and window is not None:
                if window not in views:
                    part = picture.image[window.top : window.bottom, window.left : window.right]
                    views[window] = EncodedImage(np.ascontiguousarray(part))
                texts.setdefault(window, {})[alone[one.prompt]] = None
        if not texts:
            break
        answers = yield [Ground(views[window], tuple(asked)) for window, asked in texts.items()]
        seen = {
            (window, text): logits / calibration.temperature
            for (window, asked), heatmaps in zip(texts.items(), answers, strict=True)
            for text, logits in zip(asked, heatmaps, strict=True)
        }
        for one, window in windows.items():
            if one in found or window is None:
                continue
            region = look_closer(one.region, window, seen[window, alone[one.prompt]], calibration, fixed)
            better = None if last or region is None or not fits_badly(region, size) else region
            windows[one] = window if better is None else closer_window(better, size, calibration) or window
            if windows[one] == window:
                there = None if region is None else _Object(prompt=one.prompt, region=region, picture=views[window])
                found[one] = there
    return [found[one] for one in objects]


def _look_wider(
    objects: Sequence[_Object],
    picture: EncodedImage,
    views: dict[Window, EncodedImage],
    prompts: Sequence[str],
    options: SegmentOptions,
    calibration: Calibration,
    low_res_size: int,
) -> Generator[list[Ground] | list[Decode], list[Any], None]:
    """Do again, in a window that is large enough, what SAM 2 shows to reach beyond its own: the heatmap did not."""
    size = (picture.image.shape[0], picture.image.shape[1])
    cut = []
    for one in objects:
        if one.best is not None and one.region.zoomed:
            mask = one.best.mask
            logits = np.where(mask, np.maximum(one.region.logits, 1.0), one.region.logits)
            region = replace(one.region, mask=mask, logits=logits)
            if is_cut_off(region, size):
                cut.append((one, _Object(prompt=one.prompt, region=region, picture=picture)))
    if not cut:
        return
    seen = yield from _look_closer([wider for _, wider in cut], picture, views, prompts, options, calibration)
    again = [
        (one, there)
        for (one, _), there in zip(cut, seen, strict=True)
        if there is not None and there.region.zoomed and there.region.window != one.region.window
    ]
    if again:
        yield from _refine([there for _, there in again], calibration, low_res_size)
    for one, there in again:
        if there.best is not None:
            one.region, one.picture = there.region, there.picture
            one.judged, one.best, one.why = there.judged, there.best, there.why


def _alone(prompt: str) -> str:
    """What a closer look, which leaves the rest of the picture out, can be asked for."""
    return " ".join(word for word in prompt.split() if word.lower() not in _RELATIVE) or prompt


def _refine(
    objects: Sequence[_Object], calibration: Calibration, low_res_size: int
) -> Generator[list[Decode], list[Any], None]:
    proposals = [propose(one.region, low_res_size) for one in objects]
    answers = yield [Decode(one.picture, tuple(asked.values())) for one, asked in zip(objects, proposals, strict=True)]
    for one, asked, offers in zip(objects, proposals, answers, strict=True):
        for kind, offer in zip(asked, offers, strict=True):
            one.judged += judge(one.region, kind, offer, calibration)
        one.best, one.why = choose(one.region, one.judged, calibration)
    for _ in range(calibration.rounds):
        going = [(one, one.best) for one in objects if one.best is not None]
        if not going:
            return
        answers = yield [Decode(one.picture, (improve(one.region, best),)) for one, best in going]
        for (one, best), (offer,) in zip(going, answers, strict=True):
            again = judge(one.region, f"{best.candidate.kind.removesuffix(', again')}, again", offer, calibration)
            one.judged += again
            better, why = choose(one.region, again, calibration)
            if better is not None and better.candidate.score > best.candidate.score:
                one.best, one.why = better, why


def _draw(one: _Object, size: tuple[int, int], calibration: Calibration) -> None:
    """The final mask at the picture's own resolution."""
    window = one.region.window
    bits = np.empty((window.height, window.width), bool)
    columns = np.arange(window.width)
    for band in _bands(bits.shape):
        rows = np.arange(band.start, band.stop)
        bits[band] = _logits(one, rows, columns, calibration, sample) > 0
    one.cropped = CroppedMask(bits, window.left, window.top, size).tight()
    if one.best is None:
        one.why = one.why or "SAM 2 was not asked"


def _logits(
    one: _Object,
    rows: np.ndarray,
    columns: np.ndarray,
    calibration: Calibration,
    sampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Logits at pixels of the object's window, taken from the models' grids by `sample` or `sample_places`.

    They are not kept: at the picture's resolution they are the largest thing of an answer.
    """
    region, window = one.region, one.region.window
    y, x = (rows + 0.5) / window.height, (columns + 0.5) / window.width
    edge = float(np.log(region.threshold / (1 - region.threshold)))
    # Near the region's own cells the heatmap decides; elsewhere there is nothing of this object.
    apart = np.where(_grown(region.mask), region.logits - edge, -8)
    cells = region.mask.shape[0]
    coarse = sampled(np.clip(apart, -8, 8), y * cells, x * cells)
    if one.best is None:
        return coarse
    low = one.best.logits.shape[0]
    return sampled(one.best.logits, y * low, x * low) + calibration.blend * coarse


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


def _without_doubles(objects: Sequence[_Object]) -> list[_Object]:
    """Of two answers to one prompt that are the same object, the surer."""
    kept: list[_Object] = []
    for one in sorted(objects, key=_score, reverse=True):
        mine = _mask_of(one)
        doubles = (
            other.prompt == one.prompt
            and mine.overlap(_mask_of(other)) > _SAME_OBJECT * min(mine.area, _mask_of(other).area)
            for other in kept
        )
        if not any(doubles):
            kept.append(one)
    return sorted(kept, key=lambda one: one.prompt)


def _resolve_overlaps(objects: Sequence[_Object], calibration: Calibration) -> None:
    """Where two different objects meet, each pixel goes to the one whose logits are higher there."""
    for number, one in enumerate(objects):
        for other in objects[number + 1 :]:
            mine, theirs = _mask_of(one), _mask_of(other)
            both = mine.overlap(theirs)
            if not both or both > _NESTED * min(mine.area, theirs.area) or mine.iou(theirs) > _SAME_NAME:
                continue
            _divide(one, other, calibration)


def _divide(one: _Object, other: _Object, calibration: Calibration) -> None:
    mine, theirs = _mask_of(one), _mask_of(other)
    where = mine.shared(theirs)
    assert where is not None
    ours, others = mine.bits[where[0]], theirs.bits[where[1]]
    left, top = max(mine.left, theirs.left), max(mine.top, theirs.top)
    for band in _bands(ours.shape):
        rows, columns = np.nonzero(ours[band] & others[band])
        if not len(rows):
            continue
        here, there = (
            _logits(
                each,
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


def _instance(one: _Object) -> Instance:
    return Instance(
        cropped=_mask_of(one).tight(),
        score=_score(one),
        quality=_quality(one),
        presence=one.presence,
        evidence=one.evidence,
        source="coarse" if one.best is None else "sam2",
        why=one.why,
        candidates=shortlist(one.judged),
        zoomed=one.region.zoomed,
    )


def _presence(one: _Object, agreement: float, calibration: Calibration) -> float:
    return presence_of(evidence(one.region, agreement), calibration)


def _score(one: _Object) -> float:
    return one.presence * _quality(one)


def _quality(one: _Object) -> float:
    return one.best.candidate.score if one.best else soft_iou(one.region.mask, one.region.shares)


def _mask_of(one: _Object) -> CroppedMask:
    assert one.cropped is not None
    return one.cropped


def _reason(heatmap: np.ndarray, threshold: float, surest: float, at_least: float) -> str:
    peak = float(heatmap.max())
    if peak < threshold:
        return f"the heatmap peaks at {peak:.2f}, below the threshold of {threshold:.2f}"
    if surest == 0:
        return f"the heatmap peaks at {peak:.2f}, but a closer look shows nothing there"
    if surest >= at_least:
        return "it is there, but no pixel of the picture is left for its mask"
    return f"something alike is there, but the probability of {surest:.2f} is below {at_least:.2f}"
