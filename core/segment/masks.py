"""Measures and operations on masks, without models: bool `[height, width]` throughout."""

from typing import Any

import numpy as np
from scipy import ndimage

Mask = np.ndarray


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union, in [0, 1]; two empty masks agree fully."""
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


def soft_iou(mask: Mask, shares: np.ndarray) -> float:
    """How well a mask agrees with a map of probabilities: sum of the smaller over sum of the larger, in [0, 1]."""
    overlap = float(shares[mask].sum())
    union = float(mask.sum()) + float(shares.sum()) - overlap
    return overlap / union if union > 0 else 0.0


def stability(logits: np.ndarray, offset: float = 1.0) -> float:
    """IoU of the masks that a stricter and a laxer cut-off give (Kirillov et al., 2023), in [0, 1]."""
    return float((logits > offset).sum() / max(1, int((logits > -offset).sum())))


def boundary_f(mask: Mask, truth: Mask, tolerance: float = 0.0075) -> float:
    """F measure of the boundaries (Perazzi et al., 2016), in [0, 1]; `tolerance` is a share of the diagonal."""
    reach = max(1.0, tolerance * float(np.hypot(*mask.shape)))
    edges = [m & ~ndimage.binary_erosion(m, border_value=1) for m in (mask, truth)]
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    near = [_depth(~edge) <= reach for edge in edges]
    precision = float((edges[0] & near[1]).sum() / edges[0].sum())
    recall = float((edges[1] & near[0]).sum() / edges[1].sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def box_xyxy(mask: Mask) -> np.ndarray:
    """The smallest box around a mask that is not empty: left, top, right, bottom in pixels, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def hysteresis(shares: np.ndarray, low: float, high: float) -> Mask:
    """All that is at least `low` and joined to something that is at least `high` (Canny, 1986)."""
    labels, _ = _components(shares >= low)
    kept = np.unique(labels[shares >= high])
    return np.isin(labels, kept[kept > 0])


def split(mask: Mask, *, min_share: float, depth: float, most: int) -> list[Mask]:
    """Objects in a mask: its components, and where one narrows enough, the parts on either side of the neck.

    A component is cut (watershed of the distance to its edge) between two cores that are separated by a neck narrower
    than `depth` times the smaller core. Parts below `min_share` of the largest are dropped as specks; of the others the
    `most` largest are given, the largest first.
    """
    labels, _ = _components(mask)
    areas = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)
    parts: list[tuple[int, Mask]] = []
    # The largest first: a mask of noise has thousands of components, and most need not be looked at.
    for index in np.argsort(-areas, kind="stable"):
        least = min_share * parts[0][0] if parts else 0
        if areas[index] < least or (len(parts) >= most and areas[index] <= parts[most - 1][0]):
            break
        part = np.zeros_like(mask)
        part[places[index]] = labels[places[index]] == index + 1
        parts += [(int(piece.sum()), piece) for piece in _cut_at_necks(part, places[index], depth)]
        parts.sort(key=lambda one: -one[0])
    return [part for area, part in parts[:most] if area >= min_share * parts[0][0]]


def _cut_at_necks(mask: Mask, where: Any, depth: float) -> list[Mask]:
    inside = np.pad(mask[where], 1)
    distance = _depth(inside)
    cores, count = _components(distance >= depth * distance.max())
    sizes = ndimage.maximum(distance, cores, range(1, count + 1)) if count > 1 else []
    if count < 2 or min(sizes) < 0.7 * max(sizes) or not _is_convex(inside, cores, count):
        return [mask]
    belongs = _nearest_core(cores)
    parts = []
    for index in range(1, count + 1):
        part = np.zeros_like(mask)
        part[where] = ((belongs == index) & inside)[1:-1, 1:-1]
        parts.append(part)
    return parts


def _is_convex(inside: Mask, cores: np.ndarray, count: int) -> bool:
    """Whether every part is nearly its own disc: the arms of a star or a ring's sides are no objects of their own."""
    belongs = np.where(inside, _nearest_core(cores), 0)
    radii = ndimage.maximum(_depth(inside), belongs, range(1, count + 1))
    areas = ndimage.sum(inside, belongs, range(1, count + 1))
    return bool(np.all(areas <= 1.9 * np.pi * np.asarray(radii) ** 2))


# scipy's own annotations allow for arguments that are not used here.
def _depth(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel of the mask to the nearest one outside it."""
    return np.asarray(ndimage.distance_transform_edt(mask))


def _nearest_core(cores: np.ndarray) -> np.ndarray:
    """For each pixel, the label of the core that is nearest."""
    nearest: Any = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    return cores[tuple(nearest)]


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    labelled: Any = ndimage.label(mask)
    return labelled
