"""The work on one picture, from prompts to masks: CLIPSeg says where, SAM 2 says exactly, and the two are compared.

Its order is written once, in `flow`, as a generator: it yields what it wants to know of the two models and is sent the
answers. `core.segment.pipeline` runs many flows together, so that what they ask at the same time is one call of the
model; a service can run the same flow against models that live elsewhere.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.segment.calibration import Calibration
from core.segment.candidates import choose, improve, judge, propose
from core.segment.objects import FoundObject, resolve_overlaps, without_doubles
from core.segment.options import SegmentOptions
from core.segment.questions import Decode, EncodedImage, Ground
from core.segment.regions import (
    Window,
    closer_window,
    find_faint,
    find_regions,
    find_rivals,
    fits_badly,
    is_cut_off,
    look_closer,
    to_shares,
    with_contrast,
)
from core.segment.results import PromptResult

# Words that compare with the rest of the picture: a closer look, which leaves the rest out, must not be asked for them.
_RELATIVE = {"small", "large", "big", "little", "tiny", "huge"}
# How often a window that does not fit its object is moved or widened.
_MORE_LOOKS = 2

Flow = Generator[list[Ground] | list[Decode], list[Any], list[PromptResult]]


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
        objects += [FoundObject(prompt=number, region=region, picture=picture) for region in regions]
    if options.zoom:
        seen = yield from _look_closer(objects, picture, views, prompts, options, calibration)
        objects = [one for one in seen if one is not None]
    at_least = calibration.min_presence if options.min_presence is None else options.min_presence
    # SAM 2 need not be asked about what would be taken to be absent even if its mask fitted perfectly.
    hopeful = [one for one in objects if one.highest_presence(calibration) >= at_least]
    if options.refine and hopeful:
        yield from _refine(hopeful, calibration, low_res_size)
        if options.zoom:
            yield from _look_wider(hopeful, picture, views, prompts, options, calibration, low_res_size)
    for one in objects:
        one.weigh(calibration)
    kept = [one for one in hopeful if one.presence >= at_least]
    for one in kept:
        one.draw(size, calibration)
    kept = [one for one in kept if one.mask.area]
    kept = without_doubles(kept)
    if options.resolve_overlaps:
        resolve_overlaps(kept, calibration)
    results = []
    for number, prompt in enumerate(prompts):
        heatmap = to_shares(heatmaps[prompt] / calibration.temperature).astype(np.float32)
        surest = max((one.presence for one in objects if one.prompt == number), default=0.0)
        instances = sorted((one.instance() for one in kept if one.prompt == number), key=lambda i: -i.score)
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
    objects: list[FoundObject],
    picture: EncodedImage,
    views: dict[Window, EncodedImage],
    prompts: Sequence[str],
    options: SegmentOptions,
    calibration: Calibration,
) -> Generator[list[Ground], list[Any], list[FoundObject | None]]:
    """Look closer at what is small: it is found again, or None. What the window does not fit is given another one.

    `views` keeps the windows of a picture, so that none is encoded twice.
    """
    size = (picture.image.shape[0], picture.image.shape[1])
    alone = [_alone(prompt) for prompt in prompts]
    fixed = 0.0 if options.threshold == "auto" else float(options.threshold)
    windows = {one: closer_window(one.region, size, calibration) for one in objects}
    found: dict[FoundObject, FoundObject | None] = {
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
                there = None if region is None else FoundObject(prompt=one.prompt, region=region, picture=views[window])
                found[one] = there
    return [found[one] for one in objects]


def _look_wider(
    objects: Sequence[FoundObject],
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
                cut.append((one, FoundObject(prompt=one.prompt, region=region, picture=picture)))
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
            one.offered, one.best, one.why = there.offered, there.best, there.why


def _alone(prompt: str) -> str:
    """What a closer look, which leaves the rest of the picture out, can be asked for."""
    return " ".join(word for word in prompt.split() if word.lower() not in _RELATIVE) or prompt


def _refine(
    objects: Sequence[FoundObject], calibration: Calibration, low_res_size: int
) -> Generator[list[Decode], list[Any], None]:
    proposals = [propose(one.region, low_res_size) for one in objects]
    answers = yield [Decode(one.picture, tuple(asked.values())) for one, asked in zip(objects, proposals, strict=True)]
    for one, asked, offers in zip(objects, proposals, answers, strict=True):
        judged = [
            each
            for kind, offer in zip(asked, offers, strict=True)
            for each in judge(one.region, kind, offer, calibration)
        ]
        one.offered += [each.candidate for each in judged]
        one.best, one.why = choose(one.region, judged, calibration)
    for _ in range(calibration.rounds):
        going = [(one, one.best) for one in objects if one.best is not None]
        if not going:
            return
        answers = yield [Decode(one.picture, (improve(one.region, best),)) for one, best in going]
        for (one, best), (offer,) in zip(going, answers, strict=True):
            again = judge(one.region, f"{best.candidate.kind.removesuffix(', again')}, again", offer, calibration)
            one.offered += [each.candidate for each in again]
            better, why = choose(one.region, again, calibration)
            if better is not None and better.candidate.score > best.candidate.score:
                one.best, one.why = better, why


def _reason(heatmap: np.ndarray, threshold: float, surest: float, at_least: float) -> str:
    peak = float(heatmap.max())
    if peak < threshold:
        return f"the heatmap peaks at {peak:.2f}, below the threshold of {threshold:.2f}"
    if surest == 0:
        return f"the heatmap peaks at {peak:.2f}, but a closer look shows nothing there"
    if surest >= at_least:
        return "it is there, but no pixel of the picture is left for its mask"
    return f"something alike is there, but the probability of {surest:.2f} is below {at_least:.2f}"
