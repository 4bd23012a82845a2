"""CLIPSeg and SAM 2 as a replica holds them: calls for many requests at once, and no picture encoded twice."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.segment.calibration import Calibration
from core.segment.clipseg import ClipSeg
from core.segment.grounder import Grounder
from core.segment.pipeline import DEMO_CALIBRATION, PRESETS, EncodedImage
from core.segment.sam2 import MaskPrompt, Sam2
from core.segment.scenes import COLOURS, SHAPES, SIZE_WORDS
from serve.feature_cache import FeatureCache
from serve.ports import SegmenterCard
from serve.settings import Settings

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
    name = settings.clipseg or PRESETS[settings.preset][0]
    return ClipSeg.from_pretrained(name, device=settings.device, precision=settings.dtype)


def load_sam2(settings: Settings) -> Sam2:
    """Raises ValueError if there is none."""
    name = settings.sam2 or PRESETS[settings.preset][1]
    return Sam2.from_pretrained(name, config=settings.sam2_config, device=settings.device, precision=settings.dtype)


def load_calibration(settings: Settings) -> Calibration:
    """The one that was named; else the preset's, if its models are used. Raises ValueError if it cannot be read."""
    if settings.calibration is not None:
        return Calibration.load(settings.calibration)
    return Calibration.load(DEMO_CALIBRATION) if _is_demo(settings) else Calibration()


def segmenter_card(settings: Settings, clipseg: Grounder, sam2: Sam2) -> SegmenterCard:
    """What clients may know of the models that were loaded."""
    words = (SHAPES, tuple(COLOURS), SIZE_WORDS) if _is_demo(settings) else ((), (), ())
    return SegmenterCard(
        preset=settings.preset,
        clipseg=clipseg.revision,
        sam2=sam2.revision,
        device=settings.device,
        low_res_size=sam2.low_res_size,
        shapes=words[0],
        colours=words[1],
        sizes=words[2],
    )


def _is_demo(settings: Settings) -> bool:
    return settings.preset == "demo" and settings.clipseg is None and settings.sam2 is None


class GroundCalls:
    """Heatmaps for several pictures in one call."""

    def __init__(self, grounder: Grounder, cache: FeatureCache) -> None:
        self._grounder, self._cache = grounder, cache

    def __call__(self, asked: Sequence[Asked]) -> list[Answered]:
        pictures = [one.call.picture for one in asked]
        keys = [one.key for one in asked]
        cached = _fill(pictures, keys, "grounded", self._grounder.revision, self._grounder.encode_images, self._cache)
        prompts = [one.call.prompts for one in asked]
        heatmaps = self._grounder.heatmaps([picture.grounded for picture in pictures], prompts)
        return [Answered(logits.numpy(), hit) for logits, hit in zip(heatmaps, cached, strict=True)]

    def run_once(self) -> None:
        """Raises RuntimeError if the model gives numbers that are not finite."""
        (logits,) = self._grounder.heatmaps(self._grounder.encode_images([_BLANK]), [["circle"]])
        if not np.isfinite(logits.numpy()).all():
            raise RuntimeError(f"{self._grounder.revision} gives numbers that are not finite")


class DecodeCalls:
    """Masks for prompts on several pictures in one call."""

    def __init__(self, sam2: Sam2, cache: FeatureCache) -> None:
        self._sam2, self._cache = sam2, cache

    def __call__(self, asked: Sequence[Asked]) -> list[Answered]:
        pictures = [one.call.picture for one in asked]
        keys = [one.key for one in asked]
        cached = _fill(pictures, keys, "encoded", self._sam2.revision, self._sam2.encode_images, self._cache)
        features = [picture.encoded for picture, one in zip(pictures, asked, strict=True) for _ in one.call.prompts]
        masks = iter(self._sam2.decode(features, [prompt for one in asked for prompt in one.call.prompts]))
        return [Answered([next(masks) for _ in one.call.prompts], hit) for one, hit in zip(asked, cached, strict=True)]

    def run_once(self) -> None:
        """Raises RuntimeError if the model gives numbers that are not finite."""
        prompt = MaskPrompt(box_xyxy=np.array([8.0, 8.0, 56.0, 56.0]))
        (masks,) = self._sam2.decode(self._sam2.encode_images([_BLANK]), [prompt])
        if not np.isfinite(masks.mask_logits.numpy()).all():
            raise RuntimeError(f"{self._sam2.revision} gives numbers that are not finite")


def _fill(
    pictures: Sequence[EncodedImage],
    keys: Sequence[str],
    place: str,
    revision: str,
    encode: Callable[[list[np.ndarray]], Sequence[Any]],
    cache: FeatureCache,
) -> list[bool]:
    """Give every picture its features; says of each whether they were there before."""
    cached = []
    missing: dict[str, list[EncodedImage]] = {}
    for picture, key in zip(pictures, keys, strict=True):
        if getattr(picture, place) is None:
            setattr(picture, place, cache.get(revision, key))
        cached.append(getattr(picture, place) is not None)
        if not cached[-1]:
            missing.setdefault(key, []).append(picture)
    if missing:
        fresh = encode([same[0].image for same in missing.values()])
        for (key, same), features in zip(missing.items(), fresh, strict=True):
            cache.put(revision, key, features)
            for picture in same:
                setattr(picture, place, features)
    return cached
