"""How SAM 2's masks are judged against a heatmap that may be wrong about place and size."""

import dataclasses

import numpy as np
import pytest
import torch

from core.segment.calibration import Calibration
from core.segment.candidates import Judged, choose, improve, judge, propose
from core.segment.regions import Region, Window
from core.segment.sam2 import MaskCandidates

SIZE = 64
CALIBRATION = Calibration(offset_tolerance=0.4, size_tolerance=0.5, min_ratio=0.3, min_iou=0.2)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """Logits of a disc; in cells."""
    places = np.arange(SIZE) + 0.5
    return np.where(np.hypot(places[None] - x, places[:, None] - y) <= radius, 9.0, -9.0)


def region(logits: np.ndarray) -> Region:
    return Region(
        window=Window(0, 0, 4 * SIZE, 4 * SIZE),
        logits=logits,
        mask=logits > 0,
        threshold=0.5,
        peak=9.0,
        whole=9.0,
        closer=9.0,
    )


def judged(heatmap: np.ndarray, *masks: np.ndarray, calibration: Calibration = CALIBRATION) -> list[Judged]:
    stacked = torch.from_numpy(np.stack(masks)).float()
    return judge(region(heatmap), "box", MaskCandidates(stacked, torch.full((len(masks),), 0.95)), calibration)


def test_a_mask_that_fits_is_judged_as_it_lies() -> None:
    heatmap = disc(32, 32, 12)
    (one,) = judged(heatmap, heatmap)
    assert one.candidate.agreement == pytest.approx(1, abs=0.02)
    assert one.candidate.leakage == 0
    assert one.overlap == 1


@pytest.mark.parametrize("heatmap", [disc(38, 36, 12), disc(32, 32, 8), disc(27, 32, 14)])
def test_a_heatmap_beside_its_object_still_speaks_for_the_object(heatmap: np.ndarray) -> None:
    """The object is a disc of 12 cells in the middle; a smaller part of the heatmap's own ground is no object."""
    right, part = disc(32, 32, 12), np.where(np.arange(SIZE) < 32, heatmap, -9.0)
    first, second = judged(heatmap, right, part)
    assert first.candidate.score > second.candidate.score
    best, why = choose(region(heatmap), [first, second], CALIBRATION)
    assert best is first
    assert "agrees with the heatmap" in why
    strict = dataclasses.replace(CALIBRATION, offset_tolerance=0.01, size_tolerance=0.01)
    (alone,) = judged(heatmap, right, calibration=strict)
    assert alone.candidate.agreement < first.candidate.agreement


def test_the_farther_the_less_it_is_believed() -> None:
    heatmap = disc(24, 32, 10)
    agreements = [one.candidate.agreement for x in (24, 28, 32, 40, 50) for one in judged(heatmap, disc(x, 32, 10))]
    assert agreements == sorted(agreements, reverse=True)
    assert agreements[-1] < 0.1


def test_another_shape_does_not_fit_by_being_moved() -> None:
    heatmap = disc(32, 32, 12)
    bar = np.full((SIZE, SIZE), -9.0)
    bar[30:34, 4:60] = 9.0
    same, other = judged(heatmap, disc(36, 32, 12), bar)
    assert same.candidate.agreement > 2 * other.candidate.agreement


def test_a_mask_that_lies_elsewhere_is_refused_with_the_reason() -> None:
    heatmap = disc(16, 16, 8)
    best, why = choose(region(heatmap), judged(heatmap, disc(50, 50, 8)), CALIBRATION)
    assert best is None
    assert "is needed" in why
    assert choose(region(heatmap), [], CALIBRATION) == (None, "SAM 2 offered no mask")


def test_a_mask_at_the_edge_can_be_moved_off_the_grid() -> None:
    (one,) = judged(disc(4, 4, 10), disc(10, 10, 12))
    assert 0 < one.candidate.agreement <= 1


def test_the_second_question_is_about_the_mask_and_no_longer_about_the_heatmap() -> None:
    heatmap, right = disc(40, 32, 10), disc(32, 32, 12)
    (one,) = judged(heatmap, right)
    asked = improve(region(heatmap), one)
    assert asked.box_xyxy is not None and asked.points is not None
    np.testing.assert_allclose(asked.box_xyxy, np.array([20, 20, 44, 44]) * 4, atol=4)
    x, y = asked.points[0] / 4
    assert np.hypot(x - 32, y - 32) < 12


def test_questions_are_in_pixels_of_the_window() -> None:
    questions = propose(region(disc(32, 32, 12)), 16)
    assert set(questions) == {"box", "expanded box", "points", "box+points", "box+points+mask"}
    np.testing.assert_allclose(questions["box"].box_xyxy, np.array([20, 20, 44, 44]) * 4, atol=4)
    assert questions["box+points+mask"].mask_logits.shape == (16, 16)  # type: ignore[union-attr]
