"""Labelled pictures, and how well answers agree with them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.images import decode
from core.segment.calibration import Calibration
from core.segment.damage import DAMAGES, MIDDLE_STRENGTH, DamagedGrounder
from core.segment.grounder import Image
from core.segment.masks import boundary_f, iou
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.regions import presence_of
from core.segment.results import CroppedMask, Instance, PromptResult, union
from core.segment.scenes import draw_queries, generate_scene, instance_masks, render

_MAX_PIXELS = 40_000_000
_SAME_OBJECT = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A picture, prompts for it, and for each prompt the objects that it names; none for one that is absent."""

    image: Image
    prompts: tuple[str, ...]
    truths: tuple[tuple[CroppedMask, ...], ...]


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


def labelled_scene(seed: int, *, num_present: int = 3, num_absent: int = 3, short_side: int = 256) -> Labelled:
    """A generated scene with prompts; the same seed gives the same."""
    scene = generate_scene(seed)
    image, object_map = render(scene, short_side)
    queries = draw_queries(scene, np.random.default_rng([seed, 5]), num_present=num_present, num_absent=num_absent)
    truths = (
        tuple(CroppedMask.from_full(mask) for mask in instance_masks(query, scene, object_map)) for query in queries
    )
    visible = (tuple(mask for mask in masks if mask.area) for masks in truths)
    return Labelled(image, tuple(query.text for query in queries), tuple(visible))


def read_coco(file: Path, images: Path, *, max_absent: int = 3) -> list[Labelled]:
    """Pictures labelled in COCO's instance format; the categories' names are the prompts.

    Every picture is also asked for up to `max_absent` categories that it does not show.

    Args:
        file: the JSON file. images: the folder that its `file_name`s are relative to.

    Raises:
        ValueError: the file is not COCO's, or a picture is missing or damaged; the message names it.
    """
    from pycocotools import mask as coco

    try:
        content = json.loads(file.read_text())
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        pictures = sorted(content["images"], key=lambda picture: picture["id"])
        annotations = content["annotations"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not in COCO's instance format: {error!r}") from error
    root = images.resolve()
    labelled = []
    for picture in pictures:
        path = (root / str(picture["file_name"])).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"{file}: {picture['file_name']!r} lies outside {images}")
        try:
            image = decode(path.read_bytes(), max_pixels=_MAX_PIXELS)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        height, width = image.shape[:2]
        objects: dict[int, list[CroppedMask]] = {}
        for annotation in annotations:
            if annotation["image_id"] == picture["id"] and not annotation.get("iscrowd"):
                encoded = annotation["segmentation"]
                if isinstance(encoded, list):
                    encoded = coco.merge(coco.frPyObjects(encoded, height, width))
                elif isinstance(encoded["counts"], list):
                    encoded = coco.frPyObjects(encoded, height, width)
                mask = coco.decode(encoded).astype(bool)
                if mask.shape != (height, width):
                    raise ValueError(f"{file}: annotation {annotation.get('id')} is not of the size of {path.name}")
                if mask.any():
                    objects.setdefault(annotation["category_id"], []).append(CroppedMask.from_full(mask))
        shown = [number for number in names if number in objects]
        missing = [number for number in names if number not in objects]
        rng = np.random.default_rng([int(picture["id"]), 6])
        asked = [*shown, *rng.permutation(missing)[:max_absent].tolist()]
        if asked:
            truths = tuple(tuple(objects.get(number, ())) for number in asked)
            labelled.append(Labelled(image, tuple(names[number] for number in asked), truths))
    return labelled


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
