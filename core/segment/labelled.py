"""Pictures whose objects are known: generated scenes, or files in COCO's instance format."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from core.images import decode
from core.segment.grounder import Image
from core.segment.results import CroppedMask
from core.segment.scenes import draw_queries, generate_scene, instance_masks, render

_MAX_PIXELS = 40_000_000
# Categories that a picture of a file does not show and that it is asked for all the same.
_NUM_ABSENT = 3


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A picture, prompts for it, and for each prompt the objects that it names; none for one that is absent."""

    image: Image
    prompts: tuple[str, ...]
    truths: tuple[tuple[CroppedMask, ...], ...]


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


def read_coco(file: Path, images: Path) -> list[Labelled]:
    """Pictures labelled in COCO's instance format; the categories' names are the prompts.

    Every picture is also asked for up to three categories that it does not show, not even as a crowd.

    Args:
        file: the JSON file. images: the folder that its `file_name`s are relative to.

    Raises:
        ValueError: the file is not COCO's, or a picture is missing or damaged; the message names it.
    """
    try:
        content = json.loads(file.read_text())
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        pictures = sorted(content["images"], key=lambda picture: picture["id"])
        annotations: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
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
        crowds = set()
        for annotation in annotations[picture["id"]]:
            if annotation.get("iscrowd"):
                crowds.add(annotation["category_id"])
                continue
            try:
                mask = _mask(annotation["segmentation"], height, width)
                category = annotation["category_id"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}: annotation {annotation.get('id')} cannot be read: {error!r}") from error
            if mask.shape != (height, width):
                raise ValueError(f"{file}: annotation {annotation.get('id')} is not of the size of {path.name}")
            if mask.any():
                objects.setdefault(category, []).append(CroppedMask.from_full(mask))
        shown = [number for number in names if number in objects]
        missing = [number for number in names if number not in objects.keys() | crowds]
        rng = np.random.default_rng([int(picture["id"]), 6])
        asked = [*shown, *rng.permutation(missing)[:_NUM_ABSENT].tolist()]
        if asked:
            truths = tuple(tuple(objects.get(number, ())) for number in asked)
            labelled.append(Labelled(image, tuple(names[number] for number in asked), truths))
    return labelled


def _mask(encoded: Any, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The pixels of COCO's polygons, or of its run lengths, compressed or not."""
    from pycocotools import mask as coco

    if isinstance(encoded, list):
        encoded = coco.merge(coco.frPyObjects(encoded, height, width))
    elif isinstance(encoded["counts"], list):
        encoded = coco.frPyObjects(encoded, height, width)
    return coco.decode(encoded).astype(bool)
