"""From what was found to what is sent: masks in the asked form, scores, heatmaps; or all of it drawn as a picture."""

import base64
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from core.segment.prompt_tokens import PromptTokens
from core.segment.results import CroppedMask, Instance, PromptResult
from serve.ports import LateError
from serve.schemas import FoundInstance, HeatmapPng, MaskCandidate, PngMask, PolygonMask, PromptAnswer, RleMask

MaskFormat = Literal["rle", "polygon", "png"]
_DEGRADED = "there was no time left to ask SAM 2: the masks are coarse"


def prompt_answers(
    results: Sequence[PromptResult],
    mask_format: MaskFormat,
    *,
    explain: bool,
    degraded: bool,
    left_s: Callable[[], float],
    tokens: PromptTokens | None,
) -> list[PromptAnswer]:
    """The answers to the prompts.

    Args:
        explain: add heatmaps, and of every object the mask's quality and SAM 2's candidates.
        degraded: the masks are coarse for want of time.
        left_s: seconds that are left, asked before every object: a mask of a large picture as PNG takes a while.
        tokens: what tells which prompts were not read to their end; None if all were.

    Raises:
        LateError: no time is left.
    """

    def written(instance: Instance) -> FoundInstance:
        if left_s() <= 0:
            raise LateError
        return _instance(instance, mask_format, explain)

    return [
        PromptAnswer(
            prompt=result.prompt,
            found=result.found,
            presence=_share(result.presence),
            threshold=_share(result.threshold),
            reason=_DEGRADED if degraded and result.reason is None else result.reason,
            instances=[written(instance) for instance in result.instances],
            degraded="deadline" if degraded else None,
            tokens_read=tokens.limit if tokens and tokens.count(result.prompt) > tokens.limit else None,
            heatmap=_heatmap(result.heatmap) if explain else None,
        )
        for result in results
    ]


def overlay(image: np.ndarray, results: Sequence[PromptResult]) -> bytes:
    """The picture with the objects tinted, outlined and named, as a PNG."""
    from core.segment.overlay import draw_overlay  # brings matplotlib along, which most requests do without

    return _png(draw_overlay(image, results))


def _instance(instance: Instance, mask_format: MaskFormat, explain: bool) -> FoundInstance:
    candidates = [
        MaskCandidate(
            kind=one.kind,
            index=one.index,
            agreement=_share(one.agreement),
            predicted_iou=_share(one.predicted_iou),
            stability=_share(one.stability),
            leakage=_share(one.leakage),
            score=_share(one.score),
        )
        for one in instance.candidates
    ]
    return FoundInstance(
        score=_share(instance.score),
        presence=_share(instance.presence),
        box_xyxy=list(instance.box_xyxy),
        area=instance.area,
        source=instance.source,
        why=instance.why,
        zoomed=instance.zoomed,
        mask=_mask(instance.cropped, mask_format),
        quality=_share(instance.quality) if explain else None,
        candidates=candidates if explain else None,
    )


def _mask(mask: CroppedMask, mask_format: MaskFormat) -> RleMask | PolygonMask | PngMask:
    size = list(mask.size)
    if mask_format == "polygon":
        return PolygonMask(format="polygon", size=size, polygons=mask.polygons())
    if mask_format == "png":
        return PngMask(format="png", size=size, data=_base64(mask.png()))
    return RleMask(format="rle", size=size, counts=mask.rle()["counts"])


def _heatmap(heatmap: np.ndarray) -> HeatmapPng:
    grey = (heatmap * 255 + 0.5).astype(np.uint8)
    return HeatmapPng(format="png", size=list(heatmap.shape), data=_base64(_png(grey)))


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    # The default effort takes several times as long for a few per cent.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _share(value: float) -> float:
    """Four digits are more than is known, and sums of rounded numbers may leave the range by a hair."""
    return round(min(1.0, max(0.0, float(value))), 4)
