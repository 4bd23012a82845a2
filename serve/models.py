"""CLIPSeg and SAM 2 as a replica holds them: calls for many requests at once, and no picture encoded twice."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.segment.calibration import Calibration
from core.segment.clipseg import ClipSeg
from core.segment.grounder import Grounder
from core.segment.presets import Checkpoints, checkpoints_of
from core.segment.questions import EncodedImage
from core.segment.sam2 import MaskPrompt, Sam2
from core.segment.scenes import COLOURS, SHAPES, SIZE_WORDS
from serve.feature_cache import FeatureCache
from serve.ports import SegmenterCard
from serve.settings import Settings

CLIPSEG, SAM2 = "clipseg", "sam2"
_BLANK = np.full((64, 64, 3), 127, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A `Ground` or a `Decode` of a flow, with the key of its picture's content."""

    call: Any
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What the flow is to be sent, and whether the picture's features were there already."""

    answer: Any
    cached: bool


def content_key(image: np.ndarray) -> str:
    """The same for the same pixels."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def load_clipseg(settings: Settings) -> ClipSeg:
    """Raises ValueError if there is none."""
    return ClipSeg.from_pretrained(_checkpoints(settings).clipseg, device=settings.device, precision=settings.dtype)


def load_sam2(settings: Settings) -> Sam2:
    """Raises ValueError if there is none."""
    return Sam2.from_pretrained(
        _checkpoints(settings).sam2, config=settings.sam2_config, device=settings.device, precision=settings.dtype
    )


def load_calibration(settings: Settings) -> Calibration:
    """The one that was named; else the preset's, if its models are used. Raises ValueError if it cannot be read."""
    if settings.calibration is not None:
        return Calibration.load(settings.calibration)
    return _checkpoints(settings).calibration()


def segmenter_card(settings: Settings, clipseg: Grounder, sam2: Sam2) -> SegmenterCard:
    """What clients may know of the models that were loaded."""
    words = (SHAPES, tuple(COLOURS), SIZE_WORDS) if _checkpoints(settings).are_demo else ((), (), ())
    return SegmenterCard(
        preset=settings.preset,
        clipseg=clipseg.revision,
        sam2=sam2.revision,
        device=settings.device,
        low_res_size=sam2.low_res_size,
        prompt_tokens=clipseg.prompt_tokens,
        shapes=words[0],
        colours=words[1],
        sizes=words[2],
    )


def _checkpoints(settings: Settings) -> Checkpoints:
    return checkpoints_of(settings.preset, settings.clipseg, settings.sam2)


class _Calls:
    """Calls of one model, and the features that it makes of pictures.

    Args:
        place: where an `EncodedImage` holds them.
    """

    def __init__(self, model: Any, place: str, cache: FeatureCache) -> None:
        self._model, self._place, self._cache = model, place, cache

    def recall(self, picture: EncodedImage, key: str) -> bool:
        """Give the picture its features from the cache; whether they were there."""
        known = self._cache.get(self._model.revision, key)
        if known is None:
            return False
        setattr(picture, self._place, known)
        self._cache.looked_up(hit=True)
        return True

    def _features(self, asked: Sequence[Asked]) -> tuple[list[Any], list[bool]]:
        """Of every picture its features, made in one call where they are missing, and whether they were there."""
        cached, missing = [], {}
        for one in asked:
            picture: EncodedImage = one.call.picture
            cached.append(getattr(picture, self._place) is not None or self.recall(picture, one.key))
            if not cached[-1]:
                self._cache.looked_up(hit=False)
                missing.setdefault(one.key, []).append(picture)
        if missing:
            fresh = self._model.encode_images([alike[0].image for alike in missing.values()])
            for (key, alike), features in zip(missing.items(), fresh, strict=True):
                self._cache.put(self._model.revision, key, features)
                for picture in alike:
                    setattr(picture, self._place, features)
        return [getattr(one.call.picture, self._place) for one in asked], cached


class GroundCalls(_Calls):
    """Heatmaps for several pictures in one call."""

    def __init__(self, grounder: Grounder, cache: FeatureCache) -> None:
        super().__init__(grounder, "grounded", cache)

    def __call__(self, asked: Sequence[Asked]) -> list[Answered]:
        features, cached = self._features(asked)
        heatmaps = self._model.heatmaps(features, [one.call.prompts for one in asked])
        return [Answered(logits.numpy(), hit) for logits, hit in zip(heatmaps, cached, strict=True)]

    def run_once(self) -> None:
        """Raises RuntimeError if the model gives numbers that are not finite."""
        (logits,) = self._model.heatmaps(self._model.encode_images([_BLANK]), [["circle"]])
        if not np.isfinite(logits.numpy()).all():
            raise RuntimeError(f"{self._model.revision} gives numbers that are not finite")


class DecodeCalls(_Calls):
    """Masks for prompts on several pictures in one call."""

    def __init__(self, sam2: Sam2, cache: FeatureCache) -> None:
        super().__init__(sam2, "encoded", cache)

    def __call__(self, asked: Sequence[Asked]) -> list[Answered]:
        features, cached = self._features(asked)
        rows = [kept for kept, one in zip(features, asked, strict=True) for _ in one.call.prompts]
        masks = iter(self._model.decode(rows, [prompt for one in asked for prompt in one.call.prompts]))
        return [Answered([next(masks) for _ in one.call.prompts], hit) for one, hit in zip(asked, cached, strict=True)]

    def run_once(self) -> None:
        """Raises RuntimeError if the model gives numbers that are not finite."""
        prompt = MaskPrompt(box_xyxy=np.array([8.0, 8.0, 56.0, 56.0]))
        (masks,) = self._model.decode(self._model.encode_images([_BLANK]), [prompt])
        if not np.isfinite(masks.mask_logits.numpy()).all():
            raise RuntimeError(f"{self._model.revision} gives numbers that are not finite")
