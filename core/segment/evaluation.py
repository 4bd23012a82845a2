"""How well answers agree with labels, and the presence that suits them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.segment.calibration import Calibration
from core.segment.damage import DAMAGES, MIDDLE_STRENGTH, DamagedGrounder
from core.segment.labelled import Labelled
from core.segment.masks import boundary_f, iou
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.regions import presence_of
from core.segment.results import Instance, PromptResult, union

_SAME_OBJECT = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Agreement with the labels, each in [0, 1].

    mean_iou, boundary_f: over the prompts that name something; one that is not found counts as 0.
    ap50: average precision of the objects at an IoU of one half, over all prompts, by COCO's own code.
    found: share of the prompts that name something and are answered. absent: share of the others that are not.
    """

    mean_iou: float
    boundary_f: float
    ap50: float
    found: float
    absent: float
    num_present: int
    num_absent: int


def score(labelled: Sequence[Labelled], answers: Sequence[Sequence[PromptResult]]) -> Scores:
    """Hold answers against labels."""
    ious, edges, found, absent = [], [], [], []
    for picture, results in zip(labelled, answers, strict=True):
        size = (picture.image.shape[0], picture.image.shape[1])
        for truth, result in zip(picture.truths, results, strict=True):
            if not truth:
                absent.append(not result.found)
                continue
            whole = union(truth, size)
            ious.append(iou(result.mask, whole))
            edges.append(boundary_f(result.mask, whole))
            found.append(result.found)
    return Scores(
        mean_iou=_mean(ious),
        boundary_f=_mean(edges),
        ap50=average_precision(labelled, answers),
        found=_mean(found),
        absent=_mean(absent),
        num_present=len(ious),
        num_absent=len(absent),
    )


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


def surest(result: PromptResult) -> PromptResult:
    """Of a result with every object, however doubtful, what somebody takes who knows that the prompt names something.

    That is the surest object, and the others that are at least half as probable.
    """
    at_least = max((instance.presence for instance in result.instances), default=0.0) / 2
    return dataclasses.replace(result, instances=tuple(i for i in result.instances if i.presence >= at_least))


def average_precision(labelled: Sequence[Labelled], answers: Sequence[Sequence[PromptResult]]) -> float:
    """AP50 by pycocotools; each picture with a prompt is an image of its own, and all objects are of one kind."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, annotations, detections = [], [], []
    for picture, results in zip(labelled, answers, strict=True):
        for truth, result in zip(picture.truths, results, strict=True):
            number = len(images) + 1
            height, width = picture.image.shape[:2]
            images.append({"id": number, "height": height, "width": width})
            for mask in truth:
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0})
                annotations[-1] |= {"segmentation": mask.rle(), "area": mask.area}
            for instance in result.instances:
                detections.append({"image_id": number, "category_id": 1, "score": instance.score})
                detections[-1]["segmentation"] = instance.cropped.rle()
    if not detections or not annotations:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        categories = [{"id": 1, "name": "object"}]
        truth_index: Any = COCO()
        truth_index.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truth_index.createIndex()
        evaluation = COCOeval(truth_index, truth_index.loadRes(detections), "segm")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, 0, 0, -1]
    return float(precision[precision > -1].mean())


def fit_presence(
    labelled: Sequence[Labelled], answers: Sequence[Sequence[PromptResult]], calibration: Calibration
) -> Calibration:
    """The calibration with a logistic regression of "this object is there" on the evidence of each answer.

    The cut is where absent prompts and present ones, each kind counted alike, are answered rightly most often.

    Args:
        answers: given with `min_presence=0`, so that all objects are among them.

    Raises:
        ValueError: all objects are right, or all are wrong: there is nothing to tell apart.
    """
    from sklearn.linear_model import LogisticRegression

    evidence, right = [], []
    for picture, results in zip(labelled, answers, strict=True):
        for truth, result in zip(picture.truths, results, strict=True):
            for instance in result.instances:
                evidence.append(instance.evidence)
                right.append(any(instance.cropped.iou(mask) >= _SAME_OBJECT for mask in truth))
    if len(set(right)) < 2:
        raise ValueError(
            f"presence cannot be fitted: all of the {len(right)} objects found are {'right' if any(right) else 'wrong'}"
        )
    model = LogisticRegression(C=10.0, max_iter=1000).fit(np.array(evidence), np.array(right))
    fitted = dataclasses.replace(
        calibration,
        presence_bias=round(float(model.intercept_[0]), 4),
        presence_weights=tuple(round(float(weight), 4) for weight in model.coef_[0]),
    )
    surest = [
        (bool(truth), max((presence_of(i.evidence, fitted) for i in result.instances), default=0.0))
        for picture, results in zip(labelled, answers, strict=True)
        for truth, result in zip(picture.truths, results, strict=True)
    ]

    def balanced(cut: float) -> float:
        hits = [value >= cut for present, value in surest if present]
        passes = [value < cut for present, value in surest if not present]
        return (_mean(hits) if hits else 1.0) + (_mean(passes) if passes else 1.0)

    cuts = [round(0.01 * step, 2) for step in range(2, 99)]
    best = max(balanced(cut) for cut in cuts)
    # The middle of the plateau, not its edge.
    return dataclasses.replace(
        fitted, min_presence=float(np.median([cut for cut in cuts if balanced(cut) >= best - 1e-9]).round(3))
    )


def calibrate(
    segmenter: Segmenter, labelled: Sequence[Labelled], calibration: Calibration
) -> tuple[Calibration, Scores]:
    """Fit presence under a calibration's other numbers, and score the whole."""
    tried = Segmenter(segmenter.grounder, segmenter.sam2, calibration)
    answers = tried.segment(
        [picture.image for picture in labelled],
        [picture.prompts for picture in labelled],
        SegmentOptions(min_presence=0.0),
    )
    fitted = fit_presence(labelled, answers, calibration)
    return fitted, score(labelled, [[_sure(result, fitted) for result in results] for results in answers])


def damaged_iou(segmenter: Segmenter, labelled: Sequence[Labelled], calibration: Calibration) -> float:
    """Mean IoU over the kinds of damage at their middle strength and the prompts that name something, all answered."""
    found: list[float] = []
    for kind in DAMAGES:
        hurt = Segmenter(DamagedGrounder(segmenter.grounder, kind, MIDDLE_STRENGTH), segmenter.sam2, calibration)
        answers = hurt.segment(
            [picture.image for picture in labelled],
            [picture.prompts for picture in labelled],
            SegmentOptions(min_presence=0.0),
        )
        masks = [[surest(result).mask for result in results] for results in answers]
        found += overlaps(labelled, masks).tolist()
    return _mean(found)


def _sure(result: PromptResult, calibration: Calibration) -> PromptResult:
    """The result with presence judged anew, and the doubtful instances left out."""

    def judged(instance: Instance) -> Instance:
        value = presence_of(instance.evidence, calibration)
        return dataclasses.replace(instance, presence=value, score=instance.quality * value)

    instances = tuple(map(judged, result.instances))
    kept = tuple(instance for instance in instances if instance.presence >= calibration.min_presence)
    return dataclasses.replace(result, instances=kept, found=bool(kept))


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")
