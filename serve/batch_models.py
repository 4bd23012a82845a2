"""What a batch job does with pictures, segment or classify, and the columns of its rows."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from core.image_classifier import ImageClassifier
from core.segment.calibration import Calibration
from core.segment.options import SegmentOptions
from core.segment.overlay import draw_overlay
from core.segment.pipeline import Segmenter
from core.segment.results import PromptResult

_OVERLAY_QUALITY = 90
_OF_A_PICTURE = (
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("picture", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
)
SEGMENT_SCHEMA = pa.schema(
    [
        *_OF_A_PICTURE,
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("found", pa.bool_(), nullable=False),
        pa.field("presence", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        ("reason", pa.string()),
        ("instance", pa.int32()),
        ("score", pa.float64()),
        ("left", pa.int32()),
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("area", pa.int64()),
        ("source", pa.string()),
        ("why", pa.string()),
        ("mask_rle", pa.string()),
    ]
)
CLASSIFY_SCHEMA = pa.schema(
    [
        *_OF_A_PICTURE,
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A picture that could be read. image_id: its place in the listing, from 1. name: its file's, or its parquet id."""

    image_id: int
    name: str
    image: UInt8[np.ndarray, "height width 3"]

    def columns(self) -> dict[str, Any]:
        height, width = self.image.shape[:2]
        return {"image_id": self.image_id, "picture": self.name, "width": width, "height": height}


@dataclass(kw_only=True)
class Answers:
    """Rows of the task's schema, and files to be written beside them."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    overlays: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Every picture is asked for every prompt. calibration: None for that of the preset."""

    prompts: tuple[str, ...]
    options: SegmentOptions
    preset: str = "demo"
    clipseg: str | None = None
    sam2: str | None = None
    calibration: Calibration | None = None
    overlays: bool = False

    schema = SEGMENT_SCHEMA

    def load(self, device: str) -> Segmenter:
        """The models.

        Raises:
            ValueError: one of them cannot be loaded, or a prompt is too long for it; the message names it.
        """
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # the job has its own
        # The demo weights are looked up by every worker in its own copy of the project.
        segmenter = Segmenter.from_preset(
            self.preset, clipseg=self.clipseg, sam2=self.sam2, calibration=self.calibration, device=device
        )
        tokens = segmenter.grounder.prompt_tokens
        for prompt in self.prompts:
            if (count := tokens.count(prompt)) > tokens.limit:
                read = f"the model reads at most {tokens.limit}"
                raise ValueError(f"the prompt {prompt!r} has {count} tokens (words and parts of words); {read}")
        return segmenter

    def settings(self, segmenter: Segmenter) -> dict[str, Any]:
        """All that the rows depend on."""
        numbers = json.dumps(dataclasses.asdict(segmenter.calibration), sort_keys=True)
        return {
            "task": "segment",
            "prompts": list(self.prompts),
            "threshold": self.options.threshold,
            "refine": self.options.refine,
            "max_instances": self.options.max_instances,
            "overlays": self.overlays,
            "clipseg": segmenter.grounder.revision,
            "sam2": segmenter.sam2.revision,
            "calibration": hashlib.sha256(numbers.encode()).hexdigest()[:12],
        }

    def answer(self, segmenter: Segmenter, pictures: Sequence[Picture]) -> Answers:
        """Ask the models about some pictures together."""
        results = segmenter.segment(
            [picture.image for picture in pictures], [self.prompts] * len(pictures), self.options
        )
        answers = Answers()
        for picture, answered in zip(pictures, results, strict=True):
            answers.rows += segment_rows(picture, answered)
            if self.overlays:
                answers.overlays[_overlay_name(picture)] = _jpeg(draw_overlay(picture.image, answered))
        return answers


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Every picture gets its likeliest classes. folder: a checkpoint's."""

    folder: Path
    top_k: int

    schema = CLASSIFY_SCHEMA

    def load(self, device: str) -> ImageClassifier:
        """The model.

        Raises:
            ValueError: the folder is not a checkpoint of a model for RGB pictures.
        """
        return ImageClassifier.from_folder(self.folder, device)

    def settings(self, classifier: ImageClassifier) -> dict[str, Any]:
        """All that the rows depend on."""
        return {"task": "classify", "classifier": f"{classifier.name}@{classifier.revision}", "top_k": self.top_k}

    def answer(self, classifier: ImageClassifier, pictures: Sequence[Picture]) -> Answers:
        """Ask the model about some pictures together."""
        scores = classifier.scores([classifier.fit(picture.image) for picture in pictures])
        answers = Answers()
        for picture, shares in zip(pictures, scores, strict=True):
            best = np.argsort(-shares, kind="stable")[: self.top_k]
            answers.rows += [
                {
                    **picture.columns(),
                    "rank": rank,
                    "label": classifier.class_names[index],
                    "score": float(shares[index]),
                }
                for rank, index in enumerate(best, 1)
            ]
        return answers


Task = Segmentation | Classification


def segment_rows(picture: Picture, results: Sequence[PromptResult]) -> list[dict[str, Any]]:
    """A row an instance, or one for a prompt that was not found."""
    rows = []
    for result in results:
        shared = {
            **picture.columns(),
            "prompt": result.prompt,
            "found": result.found,
            "presence": result.presence,
            "threshold": result.threshold,
            "reason": result.reason,
        }
        if not result.instances:
            rows.append(shared)
        for number, instance in enumerate(result.instances):
            left, top, right, bottom = instance.box_xyxy
            rows.append(
                {
                    **shared,
                    "instance": number,
                    "score": instance.score,
                    "left": left,
                    "top": top,
                    "right": right,
                    "bottom": bottom,
                    "area": instance.area,
                    "source": instance.source,
                    "why": instance.why,
                    "mask_rle": instance.cropped.rle()["counts"],
                }
            )
    return rows


def _overlay_name(picture: Picture) -> str:
    """A plain file name, whatever the input calls the picture; the number tells namesakes apart."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", picture.name.rpartition("/")[2])[-80:]
    return f"{picture.image_id:09d}-{plain}.jpg"


def _jpeg(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_OVERLAY_QUALITY)
    return buffer.getvalue()
