"""How good are the masks, against the prototype and against the coarse masks alone, on the same pictures?

    python -m benchmarks.segmentation_quality
    python -m benchmarks.segmentation_quality --scenes 50 --damaged-scenes 10          # a first look
    python -m benchmarks.segmentation_quality --parts answers --output docs/records/segmentation/answers.json

Generated scenes whose seeds were never trained on, nor calibrated with, three prompts each that name something and
three that do not, `demo` weights. Five tables: the answers; the automatic threshold against the best ones that somebody
who knows the truth could choose, for each picture or for each prompt; how the answers bear damage done to the heatmaps,
in five strengths (done to every heatmap that the models give, those of the closer looks too); how often an answer is
worse than the coarse mask; and whether bfloat16 and float32 give the same masks.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.prototype import THRESHOLD as PROTOTYPES_THRESHOLD
from benchmarks.prototype import Answer, Damage, Prototype
from benchmarks.record import Verdict, at_most, conclude
from core.runtime import multiplies_bf16
from core.segment.damage import DAMAGES, MIDDLE_STRENGTH, STRENGTHS, DamagedGrounder
from core.segment.evaluation import Scores, overlaps, score, surest
from core.segment.labelled import Labelled, labelled_scene
from core.segment.masks import iou
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.results import CroppedMask, Instance, PromptResult, union

THRESHOLDS = tuple(round(float(t), 2) for t in np.arange(0.05, 0.96, 0.05))
_WORSE = 0.02
# Nothing was trained on these scenes, nor tuned, nor were they looked at while the pipeline was made.
FIRST_SEED = 12_000_000
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    scenes: int = 500
    """Scenes of the first, fourth and fifth table; the second takes a fifth of them."""
    damaged_scenes: int = 200
    """Scenes for each kind and strength of damage."""
    first_seed: int = FIRST_SEED
    """Seed of the first scene."""
    parts: tuple[Literal["answers", "thresholds", "damage"], ...] = ("answers", "thresholds", "damage")
    """Which tables to make."""
    output: Path | None = None
    """Write a JSON record here."""


def ours(segmenter: Segmenter, labelled: Sequence[Labelled], options: SegmentOptions) -> list[list[PromptResult]]:
    """Answers in batches of pictures."""
    answers: list[list[PromptResult]] = []
    for start in track(range(0, len(labelled), _BATCH), description="ours", transient=True, console=_ERRORS):
        part = labelled[start : start + _BATCH]
        answers += segmenter.segment([p.image for p in part], [p.prompts for p in part], options)
    return answers


def prototypes(
    prototype: Prototype, labelled: Sequence[Labelled], *, only_present: bool, damage: Any = None
) -> list[list[Answer]]:
    """The prototype's answers, one prompt at a time."""
    return [
        [
            prototype.segment(picture.image, prompt, damage)
            for prompt, truth in zip(picture.prompts, picture.truths, strict=True)
            if truth or not only_present
        ]
        for picture in track(labelled, description="prototype", transient=True, console=_ERRORS)
    ]


def as_results(picture: Labelled, answers: Sequence[Answer]) -> list[PromptResult]:
    """The prototype's answers in the form of ours: one object a prompt."""
    size = (picture.image.shape[0], picture.image.shape[1])
    results = []
    for prompt, answer in zip(picture.prompts, answers, strict=True):
        cropped = CroppedMask.from_full(answer.mask)
        instance = Instance(
            cropped=cropped, score=1.0, quality=1.0, presence=1.0, evidence=(), source="sam2", why="the box's mask"
        )
        results.append(
            PromptResult(
                prompt=prompt,
                found=answer.found,
                presence=float(answer.found),
                reason=None,
                threshold=0.5,
                heatmap=np.zeros((1, 1), np.float32),
                instances=(instance,) if answer.found and cropped.area else (),
                picture_size=size,
            )
        )
    return results


def present_only(picture: Labelled) -> Labelled:
    """Without the prompts that name nothing."""
    kept = [index for index, truth in enumerate(picture.truths) if truth]
    return Labelled(picture.image, tuple(picture.prompts[i] for i in kept), tuple(picture.truths[i] for i in kept))


def masks_of(answers: Sequence[Sequence[PromptResult]]) -> list[list[np.ndarray]]:
    """All objects of each prompt together."""
    return [[result.mask for result in results] for results in answers]


def surest_masks(segmenter: Segmenter, labelled: Sequence[Labelled], options: SegmentOptions) -> list[list[np.ndarray]]:
    """An answer to every prompt, as each names something: the surest object and those at least half as probable."""
    answers = ours(segmenter, labelled, dataclasses.replace(options, min_presence=0.0))
    return masks_of([[surest(result) for result in results] for results in answers])


def worse_than(
    labelled: Sequence[Labelled],
    answers: Sequence[Sequence[PromptResult]],
    coarse: Sequence[Sequence[PromptResult]],
) -> dict[str, float]:
    """Shares of the prompts whose answer has an IoU lower than the coarse mask's by more than `_WORSE`.

    For a prompt that names nothing, no mask is right (1) and any mask is wrong (0).
    """
    worse, present, found = [], [], []
    for picture, row, before in zip(labelled, answers, coarse, strict=True):
        size = (picture.image.shape[0], picture.image.shape[1])
        for truth, result, other in zip(picture.truths, row, before, strict=True):
            whole = union(truth, size)
            worse.append(iou(result.mask, whole) < iou(other.mask, whole) - _WORSE)
            present.append(bool(truth))
            found.append(result.found)
    bad, named, answered = np.array(worse), np.array(present), np.array(found)
    return {
        "of all prompts": float(bad.mean()),
        "of those that name something": float(bad[named].mean()),
        "of those that name something and are answered": float(bad[named & answered].mean()),
    }


def threshold_table(segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]) -> dict[str, float]:
    """Mean IoU with an automatic threshold, and with the best for every picture, or for every prompt of each."""
    present = [present_only(picture) for picture in labelled]
    table: dict[str, float] = {}
    for name, refine in (("coarse", False), ("ours", True)):
        options = SegmentOptions(refine=refine, zoom=refine)
        *fixed, automatic = (
            overlaps(present, surest_masks(segmenter, present, dataclasses.replace(options, threshold=threshold)))
            for threshold in (*THRESHOLDS, "auto")
        )
        table[f"{name}, automatic"] = float(automatic.mean())
        table |= {f"{name}, {kind}": value for kind, value in oracles(present, fixed).items()}
    shares = [[prototype.shares(picture.image, prompt) for prompt in picture.prompts] for picture in present]
    coarse = [
        overlaps(present, [[one > threshold for one in row] for row in shares])
        for threshold in (*THRESHOLDS, PROTOTYPES_THRESHOLD)
    ]
    table["prototype's coarse mask, 0.5"] = float(coarse[-1].mean())
    table |= {f"prototype's coarse mask, {kind}": value for kind, value in oracles(present, coarse[:-1]).items()}
    return table


def oracles(labelled: Sequence[Labelled], runs: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean IoU with the best of some thresholds: one for all, one a picture, one a prompt.

    Args:
        labelled: pictures with those prompts only that name something. runs: for each threshold, IoU of every prompt.
    """
    stacked = np.stack(runs)
    starts = np.cumsum([0, *(len(picture.prompts) for picture in labelled)])
    pictures = [stacked[:, low:high] for low, high in itertools.pairwise(starts) if high > low]
    return {
        "best constant": float(stacked.mean(1).max()),
        "oracle for every picture": float(np.concatenate([one[one.mean(1).argmax()] for one in pictures]).mean()),
        "oracle for every prompt": float(stacked.max(0).mean()),
    }


def damage_table(
    segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]
) -> tuple[dict[str, dict[str, list[float]]], tuple[float, float]]:
    """Mean IoU under each kind of damage in five strengths; and without any. An answer is given to every prompt."""
    present = [present_only(picture) for picture in labelled]

    def measure(grounder: Any, damage: Damage | None) -> tuple[float, float]:
        hurt = Segmenter(grounder, segmenter.sam2, segmenter.calibration)
        mine = overlaps(present, surest_masks(hurt, present, SegmentOptions()))
        theirs = prototypes(prototype, present, only_present=True, damage=damage)
        return _mean(mine), _mean(overlaps(present, [[answer.mask for answer in row] for row in theirs]))

    clean = measure(segmenter.grounder, None)
    table = {}
    for name in DAMAGES:
        hurt = [DamagedGrounder(segmenter.grounder, name, strength) for strength in STRENGTHS]
        pairs = [measure(grounder, grounder.damage) for grounder in hurt]
        table[name] = {"ours": [mine for mine, _ in pairs], "prototype": [theirs for _, theirs in pairs]}
    return table, clean


Part = tuple[dict[str, Any], list[Verdict]]


def judge_answers(segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]) -> Part:
    """The first, fourth and fifth table: all scenes, every prompt."""
    answers = ours(segmenter, labelled, SegmentOptions())
    coarse = ours(segmenter, labelled, SegmentOptions(refine=False, zoom=False, min_presence=0.0))
    theirs = prototypes(prototype, labelled, only_present=False)
    scores: dict[str, Scores] = {
        "prototype": score(labelled, [as_results(p, row) for p, row in zip(labelled, theirs, strict=True)]),
        "coarse only": score(labelled, coarse),
        "ours": score(labelled, answers),
    }
    print(f"\n{'':14}{'mean IoU':>10}{'boundary F':>12}{'AP50':>8}{'found':>8}{'absent':>8}")
    for name, one in scores.items():
        print(
            f"{name:14}{one.mean_iou:10.3f}{one.boundary_f:12.3f}{one.ap50:8.3f}{one.found:8.3f}{one.absent:8.3f}",
            flush=True,
        )
    harm = worse_than(labelled, answers, coarse)
    print(
        f"\nworse than the coarse mask by more than {_WORSE}: " + ", ".join(f"{harm[of]:.2%} {of}" for of in harm),
        flush=True,
    )
    verdicts = [
        Verdict(claim="mean IoU", measured=scores["ours"].mean_iou, target=0.90, unit=""),
        Verdict(claim="AP50", measured=scores["ours"].ap50, target=0.95, unit=""),
        Verdict(claim="absent prompts not found", measured=scores["ours"].absent, target=0.97, unit=""),
        Verdict(claim="present prompts found", measured=scores["ours"].found, target=0.97, unit=""),
        at_most(
            claim="answers worse than the coarse mask",
            measured=harm["of all prompts"],
            target=0.01,
            unit="of the prompts",
        ),
    ]
    agreement = _precision_agreement(segmenter, labelled, masks_of(answers))
    if agreement is not None:
        print(f"\nIoU of the masks of bfloat16 and float32: {agreement:.4f}", flush=True)
        verdicts.append(
            Verdict(claim="IoU of bfloat16's masks and float32's", measured=agreement, target=0.99, unit="")
        )
    figures = {
        "scores": {name: dataclasses.asdict(one) for name, one in scores.items()},
        "worse_than_coarse": harm,
        "precision_agreement": agreement,
    }
    return figures, verdicts


def judge_thresholds(segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]) -> Part:
    """The second table: a fifth of the scenes, the prompts that name something."""
    part = labelled[: max(1, len(labelled) // 5)]
    thresholds = threshold_table(segmenter, prototype, part)
    print(f"\nmean IoU by threshold, {len(part)} scenes, every prompt answered")
    for name, value in thresholds.items():
        print(f"{name:34}{value:8.4f}", flush=True)
    verdicts = [
        at_most(
            claim=f"the best threshold for every picture over the automatic one, {name}",
            measured=thresholds[f"{name}, oracle for every picture"] - thresholds[f"{name}, automatic"],
            target=0.01,
            unit="mean IoU",
        )
        for name in ("coarse", "ours")
    ]
    return {"thresholds": thresholds}, verdicts


def judge_damage(segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]) -> Part:
    """The third table: the prompts that name something."""
    damage, clean = damage_table(segmenter, prototype, labelled)
    print(f"\nmean IoU under damage, {len(labelled)} scenes, every prompt answered; strengths 1 to 5")
    print(f"{'none':14}ours {clean[0]:.3f}   prototype {clean[1]:.3f}")
    for name, rows in damage.items():
        for who, values in rows.items():
            print(f"{name:14}{who:10}" + "".join(f"{value:8.3f}" for value in values), flush=True)
    verdicts = [
        at_most(
            claim=f"lost to {name} of strength {MIDDLE_STRENGTH}, as a share of what the prototype loses",
            measured=(clean[0] - rows["ours"][MIDDLE_STRENGTH - 1])
            / max(1e-9, clean[1] - rows["prototype"][MIDDLE_STRENGTH - 1]),
            target=0.5,
            unit="",
        )
        for name, rows in damage.items()
    ]
    return {"damage": {"none": {"ours": clean[0], "prototype": clean[1]}, **damage}}, verdicts


def main(settings: Settings) -> None:
    """Print the tables and the verdicts."""
    segmenter = Segmenter.from_preset("demo")
    prototype = Prototype(segmenter)
    seeds = range(settings.first_seed, settings.first_seed + settings.scenes)
    labelled = [labelled_scene(seed) for seed in seeds]
    print(f"{len(labelled)} scenes, seeds {seeds.start:,} to {seeds.stop - 1:,}; {segmenter.grounder.revision}")
    figures: dict[str, Any] = {
        "calibration": dataclasses.asdict(segmenter.calibration),
        "weights": [segmenter.grounder.revision, segmenter.sam2.revision],
    }
    verdicts: list[Verdict] = []
    for name, judge, scenes in (
        ("answers", judge_answers, labelled),
        ("thresholds", judge_thresholds, labelled),
        ("damage", judge_damage, labelled[: settings.damaged_scenes]),
    ):
        if name in settings.parts:
            measured, judged = judge(segmenter, prototype, scenes)
            figures |= measured
            verdicts += judged
    conclude("segmentation_quality", settings, figures, verdicts, settings.output)


def _precision_agreement(
    segmenter: Segmenter, labelled: Sequence[Labelled], fast: Sequence[Sequence[np.ndarray]]
) -> float | None:
    """Mean IoU of the masks that both precisions find; one found by one alone counts as 0. None without bfloat16."""
    if not multiplies_bf16(segmenter.sam2.device):
        return None
    exact = masks_of(ours(Segmenter.from_preset("demo", precision="float32"), labelled, SegmentOptions()))
    pairs = [
        iou(one, other)
        for row, other_row in zip(fast, exact, strict=True)
        for one, other in zip(row, other_row, strict=True)
        if one.any() or other.any()
    ]
    return _mean(pairs)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values))


_ERRORS = Console(stderr=True)

if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
