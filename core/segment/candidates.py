"""What SAM 2 is asked about a region, and how its answers are judged against the heatmap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch.nn import functional as F

from core.segment.calibration import Calibration
from core.segment.masks import box_xyxy, iou, soft_iou, stability
from core.segment.regions import Region
from core.segment.results import Candidate
from core.segment.sam2 import MaskCandidates, MaskPrompt

# Below this share of the heatmap a pixel is cold: a mask that covers it has leaked out.
_COLD = 0.1
_EXPANDED = 0.1
_NUM_POINTS = 3
_KEPT = 5


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A candidate: logits on SAM 2's own grid, the mask on the heatmap's, and its IoU with the coarse mask."""

    candidate: Candidate
    logits: Float[np.ndarray, "low low"]
    mask: Bool[np.ndarray, "size size"]
    overlap: float


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a mask lies on a region: soft IoU with its heatmap, share on cold ground, IoU with its coarse mask."""

    agreement: float
    leakage: float
    overlap: float


def propose(region: Region, low_res_size: int) -> dict[str, MaskPrompt]:
    """What SAM 2 is asked, by name; in pixels of the region's window.

    Nobody has shown one kind of prompt to be the best for every heatmap, so all are tried and the answers compared.
    """
    box = _in_pixels(box_xyxy(region.mask), region)
    margin = _EXPANDED * np.tile(box[2:] - box[:2], 2) * np.array([-1, -1, 1, 1])
    limits = np.array([region.window.width, region.window.height] * 2)
    points = _points(region.mask, region)
    ones = np.ones(len(points), int)
    coarse = _resized(torch.from_numpy(region.logits), low_res_size)
    return {
        "box": MaskPrompt(box_xyxy=box),
        "expanded box": MaskPrompt(box_xyxy=np.clip(box + margin, 0, limits)),
        "points": MaskPrompt(points=points, point_labels=ones),
        "box+points": MaskPrompt(box_xyxy=box, points=points, point_labels=ones),
        "box+points+mask": MaskPrompt(box_xyxy=box, points=points, point_labels=ones, mask_logits=coarse),
    }


def improve(region: Region, best: Judged) -> MaskPrompt:
    """The best mask so far, given back: its own box, points and logits."""
    points = _points(best.mask, region)
    return MaskPrompt(
        box_xyxy=_in_pixels(box_xyxy(best.mask), region),
        points=points,
        point_labels=np.ones(len(points), int),
        mask_logits=best.logits,
    )


def judge(region: Region, kind: str, answers: MaskCandidates, calibration: Calibration) -> list[Judged]:
    """Every mask of one answer with its score; empty ones are left out.

    The score is the agreement with the heatmap times SAM 2's own opinion and the steadiness of the edge, less what
    leaks. SAM 2's opinion alone would pick the background: it is a fine mask of something.
    """
    size, shares = region.mask.shape[0], region.shares
    judged = []
    at_size = _resized(answers.mask_logits, size)
    for index, (logits, low) in enumerate(zip(at_size, answers.mask_logits.numpy(), strict=True)):
        mask = logits > 0
        if not mask.any():
            continue
        fit, steady = _best_fit(mask, region.mask, shares, calibration), stability(low)
        predicted = min(1.0, max(0.0, float(answers.iou_scores[index])))
        score = (
            fit.agreement
            * predicted**calibration.predicted_iou_power
            * steady**calibration.stability_power
            * (1 - calibration.leakage_weight * fit.leakage)
        )
        offer = Candidate(
            kind=kind,
            index=index,
            agreement=fit.agreement,
            predicted_iou=predicted,
            stability=steady,
            leakage=fit.leakage,
            score=score,
        )
        judged.append(Judged(offer, low, mask, fit.overlap))
    return judged


def choose(region: Region, judged: Sequence[Judged], calibration: Calibration) -> tuple[Judged | None, str]:
    """The candidate to believe, or None where the coarse mask is to be kept; and why."""
    if not judged:
        return None, "SAM 2 offered no mask"
    best = max(judged, key=lambda one: one.candidate.score)
    own = soft_iou(region.mask, region.shares)
    ratio = best.candidate.agreement / own if own > 0 else 1.0
    said = f"{best.candidate.kind} agrees with the heatmap {ratio:.2f} times as well as the coarse mask does"
    if ratio < calibration.min_ratio:
        return None, f"{said}; {calibration.min_ratio:.2f} is needed"
    if best.overlap < calibration.min_iou:
        return None, f"{said}, but shares only {best.overlap:.2f} of its area; {calibration.min_iou:.2f} is needed"
    return best, said


def shortlist(offered: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The best few, the best first."""
    return tuple(sorted(offered, key=lambda candidate: -candidate.score)[:_KEPT])


def _best_fit(
    mask: Bool[np.ndarray, "size size"],
    coarse: Bool[np.ndarray, "size size"],
    shares: Float[np.ndarray, "size size"],
    calibration: Calibration,
) -> _Fit:
    """The mask's fit as it lies, or after it is laid on the coarse mask, discounted by how far that took it."""
    as_it_lies = _fit(mask, coarse, shares)
    laid, belief = _laid_on(mask, coarse, calibration)
    if belief <= as_it_lies.agreement:
        return as_it_lies
    fit = _fit(laid, coarse, shares)
    moved = _Fit(belief * fit.agreement, fit.leakage, belief * fit.overlap)
    return max(as_it_lies, moved, key=lambda one: one.agreement)


def _fit(mask: np.ndarray, coarse: np.ndarray, shares: np.ndarray) -> _Fit:
    leakage = float((mask & (shares < _COLD)).sum() / max(1, mask.sum()))
    return _Fit(soft_iou(mask, shares), leakage, iou(mask, coarse))


def _laid_on(mask: np.ndarray, coarse: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, float]:
    """The mask moved and scaled to have the middle and the area of the coarse one, and how far that is to be believed.

    The belief is 1 where nothing is moved, and falls as a Gaussian of the distance, in sides of the coarse mask, and
    of the logarithm of the scale.
    """
    places = np.arange(len(mask))
    (y, x, area), (to_y, to_x, to_area) = (
        (float(m.sum(1) @ places) / m.sum(), float(m.sum(0) @ places) / m.sum(), float(m.sum())) for m in (mask, coarse)
    )
    scale = np.sqrt(area / to_area)
    offset = np.hypot(y - to_y, x - to_x) / np.sqrt(to_area)
    away = (offset / calibration.offset_tolerance) ** 2 + (np.log(scale) / calibration.size_tolerance) ** 2
    rows, columns = (np.rint((places - to) * scale + at).astype(int) for to, at in ((to_y, y), (to_x, x)))
    laid = np.pad(mask, 1)[np.ix_(*(np.clip(axis, -1, len(mask)) + 1 for axis in (rows, columns)))]
    return laid, float(np.exp(-away / 2))


def _points(mask: Bool[np.ndarray, "size size"], region: Region) -> Float[np.ndarray, "n 2"]:
    """Places well inside the mask, (x, y) in pixels of the window: the deepest, then others away from it."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    # Where the heatmap is surer, a little deeper counts.
    depth = depth * (0.5 + region.shares)
    radius = max(1.0, float(np.sqrt(mask.sum()) / 3))
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    points = []
    for _ in range(_NUM_POINTS):
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[row, column] <= 0:
            break
        points.append((column + 0.5, row + 0.5))
        depth = np.where(np.hypot(rows - row, columns - column) < radius, 0, depth)
    return _in_pixels(np.array(points).ravel(), region).reshape(-1, 2)


def _in_pixels(cells: np.ndarray, region: Region) -> np.ndarray:
    scale = np.array([region.window.width, region.window.height]) / region.mask.shape[0]
    return cells * np.tile(scale, len(cells) // 2)


def _resized(logits: torch.Tensor, size: int) -> np.ndarray:
    stacked = logits if logits.ndim == 3 else logits[None]
    if stacked.shape[-1] != size:
        stacked = F.interpolate(stacked[None].float(), size=(size, size), mode="bilinear", align_corners=False)[0]
    return (stacked if logits.ndim == 3 else stacked[0]).numpy()
