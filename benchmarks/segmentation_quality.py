"""How good are the masks, against the prototype and against the coarse masks alone, on the same pictures?

    python -m benchmarks.segmentation_quality
    python -m benchmarks.segmentation_quality --scenes 50 --damaged-scenes 10          # a first look
    python -m benchmarks.segmentation_quality --parts answers --output docs/records/segmentation/answers.json

Generated scenes whose seeds were never trained on, nor calibrated with, three prompts each that name something and
three that do not, `demo` weights. Five tables: the answers; the automatic threshold against the best one that somebody
who knows the truth could choose for each picture and prompt; how the answers bear damage done to the heatmaps, in five
strengths (done to every heatmap that the models give, those of the closer looks too); how often an answer is worse than
the coarse mask; and whether bfloat16 and float32 give the same masks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from benchmarks.prototype import Answer, Prototype
from benchmarks.record import Verdict, conclude
from core.runtime import multiplies_bf16
from core.segment.demo_training import EVALUATION_SEED
from core.segment.evaluation import Labelled, Scores, labelled_scene, score
from core.segment.masks import iou
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.results import CroppedMask, Instance, PromptResult, union

THRESHOLDS = tuple(round(float(t), 2) for t in np.arange(0.05, 0.96, 0.05))
STRENGTHS = (1, 2, 3, 4, 5)
_MIDDLE = 3
_WORSE = 0.02
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    scenes: int = 500
    """Scenes of the first, fourth and fifth table; the second takes a fifth of them."""
    damaged_scenes: int = 40
    """Scenes for each kind and strength of damage."""
    first_seed: int = EVALUATION_SEED
    """Seed of the first scene."""
    parts: tuple[Literal["answers", "thresholds", "damage"], ...] = ("answers", "thresholds", "damage")
    """Which tables to make."""
    output: Path | None = None
    """Write a JSON record here."""


class DamagedGrounder:
    """A grounder whose heatmaps are all damaged in one way."""

    def __init__(self, grounder: Any, damage: Callable[[Tensor], Tensor]) -> None:
        self.grounder, self.damage = grounder, damage
        self.revision, self.image_size = grounder.revision, grounder.image_size

    def encode_images(self, images: Sequence[Any]) -> Sequence[Any]:
        return self.grounder.encode_images(images)

    def heatmaps(self, features: Sequence[Any], prompts: Sequence[Sequence[str]]) -> list[Tensor]:
        return [
            torch.stack([self.damage(logits) for logits in one]) for one in self.grounder.heatmaps(features, prompts)
        ]


def blur(logits: Tensor, strength: int) -> Tensor:
    """Probabilities averaged over a Gaussian of 1.5% of the side for each step."""
    sigma = 0.015 * strength * logits.shape[-1]
    reach = int(3 * sigma) + 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    shares = F.pad(logits.sigmoid()[None, None], (reach,) * 4, mode="replicate")
    shares = F.conv2d(F.conv2d(shares, kernel[None, None, :, None]), kernel[None, None, None])
    return torch.logit(shares[0, 0], eps=1e-4)


def shift(logits: Tensor, strength: int) -> Tensor:
    """Moved to the lower right by 1.5% of the side for each step; what comes in at the edges is cold."""
    step = round(0.015 * strength * logits.shape[-1])
    moved = torch.full_like(logits, -6.0)
    moved[step:, step:] = logits[:-step, :-step] if step else logits
    return moved


def shrink(logits: Tensor, strength: int) -> Tensor:
    """Every warm place loses a rim of 0.8% of the side for each step (a minimum filter)."""
    reach = max(1, round(0.008 * strength * logits.shape[-1]))
    return -F.max_pool2d(-logits[None], 2 * reach + 1, stride=1, padding=reach)[0]


def noise(logits: Tensor, strength: int) -> Tensor:
    """Smooth Gaussian noise of 0.8 logits for each step, on cells of a sixteenth of the side."""
    random = torch.Generator().manual_seed(int(1000 * float(logits.abs().sum())) % 2**31)
    grid = torch.randn(1, 1, 16, 16, generator=random)
    smooth = F.interpolate(grid, size=logits.shape[-2:], mode="bicubic")[0, 0]
    return logits + 0.8 * strength * smooth


def blobs(logits: Tensor, strength: int) -> Tensor:
    """One false blob for each step, as hot as 0.4 and 0.05 more for each step, at random places."""
    random = np.random.default_rng(int(1000 * float(logits.abs().sum())) % 2**31)
    size = logits.shape[-1]
    places = torch.arange(size, dtype=torch.float32) / size
    shares = logits.sigmoid()
    for _ in range(strength):
        x, y, radius = random.uniform(0.1, 0.9), random.uniform(0.1, 0.9), random.uniform(0.03, 0.06)
        away = ((places[:, None] - y) ** 2 + (places[None] - x) ** 2) / (2 * radius**2)
        shares = torch.maximum(shares, (0.4 + 0.05 * strength) * torch.exp(-away))
    return torch.logit(shares, eps=1e-4)


DAMAGES = {"blur": blur, "shift": shift, "shrink": shrink, "noise": noise, "false blobs": blobs}


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


def overlaps(labelled: Sequence[Labelled], masks: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """IoU of every prompt that names something, in order."""
    return np.array(
        [
            iou(mask, union(truth, (picture.image.shape[0], picture.image.shape[1])))
            for picture, row in zip(labelled, masks, strict=True)
            for truth, mask in zip(picture.truths, row, strict=True)
            if truth
        ]
    )


def masks_of(answers: Sequence[Sequence[PromptResult]]) -> list[list[np.ndarray]]:
    """All objects of each prompt together."""
    return [[result.mask for result in results] for results in answers]


def threshold_table(segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]) -> dict[str, float]:
    """Mean IoU with an automatic threshold and with the best for every picture and prompt, coarse and refined."""
    present = [present_only(picture) for picture in labelled]
    table: dict[str, float] = {}
    for name, refine in (("coarse", False), ("ours", True)):
        options = SegmentOptions(refine=refine, zoom=refine, min_presence=0.0)
        runs = [
            overlaps(present, masks_of(ours(segmenter, present, dataclasses.replace(options, threshold=threshold))))
            for threshold in (*THRESHOLDS, "auto")
        ]
        oracle = np.max(runs[:-1], axis=0)
        table[f"{name}, automatic"], table[f"{name}, oracle"] = float(runs[-1].mean()), float(oracle.mean())
        table[f"{name}, best constant"] = float(max(run.mean() for run in runs[:-1]))
    fixed, best = [], []
    for picture in present:
        size = (picture.image.shape[0], picture.image.shape[1])
        for prompt, truth in zip(picture.prompts, picture.truths, strict=True):
            logits = prototype.heatmap(picture.image, prompt)
            shares = F.interpolate(logits[None, None], size=size, mode="bilinear")[0, 0].sigmoid().numpy()
            whole = union(truth, size)
            fixed.append(iou(shares > 0.5, whole))
            best.append(max(iou(shares > threshold, whole) for threshold in THRESHOLDS))
    table["prototype's coarse mask, 0.5"], table["prototype's coarse mask, oracle"] = _mean(fixed), _mean(best)
    return table


def damage_table(
    segmenter: Segmenter, prototype: Prototype, labelled: Sequence[Labelled]
) -> tuple[dict[str, dict[str, list[float]]], tuple[float, float]]:
    """Mean IoU under each kind of damage in five strengths; and without any. An answer is given to every prompt."""
    present = [present_only(picture) for picture in labelled]
    options = SegmentOptions(min_presence=0.0)

    def measure(damage: Any) -> tuple[float, float]:
        grounder = segmenter.grounder if damage is None else DamagedGrounder(segmenter.grounder, damage)
        hurt = Segmenter(grounder, segmenter.sam2, segmenter.calibration)
        mine = overlaps(present, masks_of(ours(hurt, present, options)))
        theirs = prototypes(prototype, present, only_present=True, damage=damage)
        return _mean(mine), _mean(overlaps(present, [[answer.mask for answer in row] for row in theirs]))

    clean = measure(None)
    table = {}
    for name, damage in DAMAGES.items():
        pairs = [measure(lambda logits, d=damage, s=strength: d(logits, s)) for strength in STRENGTHS]
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
    mine, before = overlaps(labelled, masks_of(answers)), overlaps(labelled, masks_of(coarse))
    was_found = np.array(
        [r.found for p, row in zip(labelled, answers, strict=True) for r, t in zip(row, p.truths, strict=True) if t]
    )
    worse = mine < before - _WORSE
    harm = {"of all": float(worse.mean()), "of those found": float(worse[was_found].mean())}
    print(
        f"\nworse than the coarse mask by more than {_WORSE}: {harm['of all']:.2%} of the prompts that name something,"
    )
    print(f"{harm['of those found']:.2%} of those that are answered", flush=True)
    verdicts = [
        Verdict(claim="mean IoU", measured=scores["ours"].mean_iou, target=0.90, unit=""),
        Verdict(claim="AP50", measured=scores["ours"].ap50, target=0.95, unit=""),
        Verdict(claim="absent prompts not found", measured=scores["ours"].absent, target=0.97, unit=""),
        Verdict(claim="present prompts found", measured=scores["ours"].found, target=0.97, unit=""),
        Verdict(
            claim="answers worse than the coarse mask",
            measured=harm["of all"],
            target=0.01,
            unit="of the prompts",
            higher_is_better=False,
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
        Verdict(
            claim=f"oracle's threshold over the automatic one, {name}",
            measured=thresholds[f"{name}, oracle"] - thresholds[f"{name}, automatic"],
            target=0.01,
            unit="mean IoU",
            higher_is_better=False,
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
        Verdict(
            claim=f"lost to {name} of strength {_MIDDLE}, as a share of what the prototype loses",
            measured=(clean[0] - rows["ours"][_MIDDLE - 1]) / max(1e-9, clean[1] - rows["prototype"][_MIDDLE - 1]),
            target=0.5,
            unit="",
            higher_is_better=False,
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
