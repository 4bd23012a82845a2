import numpy as np
import pytest
from scipy import ndimage

from core.segment.masks import boundary_f, box_xyxy, hysteresis, iou, soft_iou, split, stability

ROWS, COLUMNS = np.mgrid[0:100, 0:120]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(COLUMNS - x, ROWS - y) <= radius


EMPTY = np.zeros((100, 120), bool)


def test_iou() -> None:
    assert iou(disc(50, 50, 20), disc(50, 50, 20)) == 1
    assert iou(disc(20, 50, 10), disc(80, 50, 10)) == 0
    assert iou(EMPTY, EMPTY) == 1
    assert iou(disc(50, 50, 10), disc(50, 50, 20)) == pytest.approx(0.25, abs=0.02)


def test_soft_iou_is_iou_for_a_map_of_zeros_and_ones_and_falls_with_doubt() -> None:
    one, other = disc(50, 50, 20), disc(55, 50, 20)
    assert soft_iou(one, other.astype(float)) == pytest.approx(iou(one, other))
    assert soft_iou(one, 0.5 * one) == pytest.approx(0.5)
    assert soft_iou(EMPTY, np.zeros_like(EMPTY, float)) == 0


def test_stability_is_one_for_a_steep_edge_and_low_for_a_flat_one() -> None:
    away = 20 - np.hypot(COLUMNS - 50, ROWS - 50)
    assert stability(10 * away) > 0.97 > 0.7 > stability(0.2 * away)


def test_boundary_f() -> None:
    assert boundary_f(disc(50, 50, 20), disc(50, 50, 20)) == 1
    assert boundary_f(disc(50, 50, 20), disc(50, 50, 30)) == 0
    assert boundary_f(EMPTY, EMPTY) == 1
    assert boundary_f(EMPTY, disc(50, 50, 20)) == 0


def test_a_box_holds_the_mask_and_no_more() -> None:
    mask = EMPTY.copy()
    mask[10:20, 30:70] = True
    assert box_xyxy(mask).tolist() == [30, 10, 70, 20]


def test_hysteresis_keeps_what_is_joined_to_a_seed() -> None:
    shares = 0.3 * disc(30, 50, 10) + 0.6 * disc(30, 50, 3) + 0.3 * disc(90, 50, 10)
    assert np.array_equal(hysteresis(shares, 0.25, 0.5), disc(30, 50, 10))
    assert not hysteresis(shares, 0.25, 0.95).any()


def test_objects_apart_or_just_touching_are_told_apart_and_specks_are_dropped() -> None:
    apart = split(disc(30, 50, 15) | disc(90, 50, 12) | disc(60, 10, 1), min_share=0.05, depth=0.6, most=20)
    assert [int(part.sum()) for part in apart] == [int(disc(30, 50, 15).sum()), int(disc(90, 50, 12).sum())]
    touching = split(disc(40, 50, 18) | disc(74, 50, 18), min_share=0.05, depth=0.6, most=20)
    assert len(touching) == 2
    assert iou(touching[0], disc(40, 50, 18)) > 0.9 or iou(touching[0], disc(74, 50, 18)) > 0.9


def test_of_noise_only_the_largest_pieces_are_given() -> None:
    noise = np.random.default_rng(0).random((352, 352)) < 0.35
    areas = np.sort(np.bincount(ndimage.label(noise)[0].ravel())[1:])[::-1]
    parts = split(noise, min_share=0.0, depth=0.0, most=5)
    assert [int(part.sum()) for part in parts] == areas[:5].tolist()


def test_one_object_with_arms_or_a_hole_stays_one() -> None:
    ring = disc(60, 50, 30) & ~disc(60, 50, 20)
    cross = (abs(COLUMNS - 60) < 10) & (abs(ROWS - 50) < 35) | (abs(ROWS - 50) < 10) & (abs(COLUMNS - 60) < 35)
    for mask in (ring, cross, disc(60, 50, 30) & ~disc(75, 50, 24)):
        assert len(split(mask, min_share=0.05, depth=0.6, most=20)) == 1
    assert split(EMPTY, min_share=0.05, depth=0.6, most=20) == []
