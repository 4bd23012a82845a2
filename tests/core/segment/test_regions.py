import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.segment.calibration import Calibration
from core.segment.masks import soft_iou
from core.segment.options import SegmentOptions
from core.segment.regions import (
    Window,
    best_threshold,
    closer_window,
    find_faint,
    find_regions,
    find_rivals,
    fits_badly,
    look_closer,
    presence_of,
    sample,
    sample_places,
    to_shares,
    with_contrast,
)

SIZE = 64
WHOLE = Window(0, 0, 320, 200)


def bump(x: float, y: float, radius: float, height: float = 5.0, base: float = -6.0) -> np.ndarray:
    """Logits that are `height` in a soft disc and `base` far from it; places in shares of the side."""
    places = (np.arange(SIZE) + 0.5) / SIZE
    away = np.hypot(places[None] - x, places[:, None] - y)
    return base + (height - base) / (1 + np.exp((away - radius) * 60))


@pytest.mark.parametrize("peak", [0.9, 0.4, 0.2])
def test_the_threshold_has_the_largest_expected_iou(peak: float) -> None:
    shares = peak * to_shares(bump(0.4, 0.5, 0.15, height=6))
    chosen = best_threshold(shares, floor=0.02)
    reached = soft_iou(shares >= chosen, shares)
    assert reached >= max(soft_iou(shares >= t, shares) for t in np.arange(0.02, peak, 0.005)) - 0.005


def test_no_threshold_is_below_the_floor() -> None:
    assert best_threshold(np.full((8, 8), 0.01), floor=0.1) == 0.1


@pytest.mark.parametrize("size", [(7, 11), (64, 64), (200, 131)])
def test_sample_is_torchs_bilinear_interpolation(size: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    rows, columns = ((np.arange(length) + 0.5) / length * 16 for length in size)
    expected = F.interpolate(torch.from_numpy(grid)[None, None], size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(sample(grid, rows, columns), expected[0, 0].numpy(), atol=1e-5)


def test_single_places_are_sampled_as_a_rectangle_is() -> None:
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(16, 16)).astype(np.float32)
    rows, columns = ((np.arange(length) + 0.5) / length * 16 for length in (70, 110))
    y, x = rng.integers(0, 70, 500), rng.integers(0, 110, 500)
    np.testing.assert_array_equal(sample_places(grid, rows[y], columns[x]), sample(grid, rows, columns)[y, x])


def test_two_bumps_are_two_regions_and_neither_sees_the_other() -> None:
    logits = np.maximum(bump(0.25, 0.5, 0.12), bump(0.75, 0.5, 0.1))
    _, (first, second) = find_regions(logits, WHOLE, SegmentOptions(), Calibration())
    assert first.mask.sum() > second.mask.sum()
    assert not (first.mask & second.mask).any()
    assert first.shares[second.mask].max() < 0.01
    assert first.box == pytest.approx([0.13 * 320, 0.38 * 200, 0.37 * 320, 0.62 * 200], abs=6)


def test_a_small_hot_region_is_there_beside_a_large_one_however_few_are_wanted() -> None:
    logits = np.maximum(bump(0.65, 0.6, 0.25, height=0.5), bump(0.2, 0.2, 0.08))
    _, (large, small) = find_regions(logits, WHOLE, SegmentOptions(max_instances=1), Calibration())
    assert large.mask.sum() > small.mask.sum()
    assert small.whole > large.whole


def test_a_cold_heatmap_has_no_region() -> None:
    threshold, regions = find_regions(np.full((SIZE, SIZE), -5.0), WHOLE, SegmentOptions(), Calibration())
    assert regions == []
    assert 0 < threshold < 1


def test_a_given_threshold_is_taken() -> None:
    logits = bump(0.5, 0.5, 0.2)
    threshold, (region,) = find_regions(logits, WHOLE, SegmentOptions(threshold=0.9), Calibration())
    assert threshold == 0.9
    np.testing.assert_array_equal(region.mask, to_shares(logits) >= 0.9)


def test_a_faint_object_beside_noise_is_cut_at_its_own_scale() -> None:
    shares = 0.35 * to_shares(bump(0.5, 0.5, 0.2, height=8)) + 0.01
    threshold, (region,) = find_regions(np.log(shares / (1 - shares)), WHOLE, SegmentOptions(), Calibration())
    assert threshold < 0.35
    assert region.mask.sum() == pytest.approx(np.pi * (0.2 * SIZE) ** 2, rel=0.2)


def test_only_small_regions_are_looked_at_closely_inside_the_picture() -> None:
    calibration = Calibration(zoom_below=0.5, zoom_context=2)
    _, (small,) = find_regions(bump(0.05, 0.9, 0.06), WHOLE, SegmentOptions(), calibration)
    window = closer_window(small, (200, 320), calibration)
    assert window is not None
    assert window.width == window.height
    assert window.left == 0 and window.bottom == 200
    _, (large,) = find_regions(bump(0.5, 0.5, 0.35), WHOLE, SegmentOptions(), calibration)
    assert closer_window(large, (200, 320), calibration) is None
    assert closer_window(small, (200, 320), Calibration(zoom_below=0)) is None


def test_a_closer_look_confirms_or_denies() -> None:
    calibration = Calibration(closer_weight=1.0)
    square = Window(0, 0, 200, 200)
    _, (region,) = find_regions(bump(0.5, 0.5, 0.1), square, SegmentOptions(), calibration)
    window = Window(50, 50, 150, 150)
    seen = look_closer(region, window, bump(0.5, 0.5, 0.2), calibration, 0)
    assert seen is not None and seen.zoomed
    assert seen.box == pytest.approx([80, 80, 120, 120], abs=4)
    assert look_closer(region, window, np.full((SIZE, SIZE), -6.0), calibration, 0) is None


def test_presence_grows_with_the_evidence() -> None:
    weak, strong = (presence_of((x, x, x, x, x, x / 5), Calibration()) for x in (-3.0, 5.0))
    assert 0 < weak < 0.1 < 0.9 < strong < 1


def test_contrast_is_the_distance_to_the_hottest_rival() -> None:
    _, (region,) = find_regions(bump(0.5, 0.5, 0.2), WHOLE, SegmentOptions(), Calibration())
    own, cool, hot = (np.full((SIZE, SIZE), value) for value in (1.0, -2.0, 2.5))
    assert with_contrast(region, own, [cool, hot], [], Calibration()).contrast == pytest.approx(-1.5)
    assert with_contrast(region, own, [cool], [hot], Calibration()).relative == pytest.approx(-1.5)
    assert region.contrast == 0


def test_what_a_rival_was_given_is_looked_at_again_where_the_prompt_has_nothing() -> None:
    own, rival = bump(0.25, 0.5, 0.12), np.maximum(bump(0.25, 0.5, 0.12), bump(0.75, 0.5, 0.1))
    _, regions = find_regions(own, WHOLE, SegmentOptions(), Calibration())
    (other,) = find_rivals(regions, own, rival[None], WHOLE, SegmentOptions(), Calibration())
    assert other.box == pytest.approx([0.65 * 320, 0.4 * 200, 0.85 * 320, 0.6 * 200], abs=6)
    assert other.whole < -5 < 3 < regions[0].whole  # what the prompt's own heatmap says of the place
    assert with_contrast(other, own, [rival], [], Calibration()).contrast < -8


def test_prompts_that_find_one_object_look_through_one_window() -> None:
    boxes = []
    for x, radius in ((0.4, 0.1), (0.405, 0.1), (0.4, 0.103)):
        _, (region,) = find_regions(bump(x, 0.5, radius), WHOLE, SegmentOptions(), Calibration())
        boxes.append(closer_window(region, (200, 320), Calibration()))
    assert boxes[0] is not None and boxes[0] == boxes[1] == boxes[2]


def test_a_faint_peak_is_a_guess_for_a_closer_look() -> None:
    logits = bump(0.3, 0.7, 0.03, height=-1.8)
    assert find_regions(logits, WHOLE, SegmentOptions(), Calibration())[1] == []
    (guess,) = find_faint(logits, WHOLE, 0.5, Calibration(faint=0.05))
    assert guess.faint
    left, top, right, bottom = guess.box
    assert left < 0.3 * WHOLE.width < right and top < 0.7 * WHOLE.height < bottom
    assert closer_window(guess, (WHOLE.height, WHOLE.width), Calibration()) is not None
    assert find_faint(logits, WHOLE, 0.5, Calibration(faint=0.5)) == []
    assert len(find_faint(logits - 20, WHOLE, 0.5, Calibration(faint=1e-12))) == 1


def test_no_window_is_made_for_less_than_a_heatmap_can_tell() -> None:
    sizes = []
    for radius in (0.02, 0.04):
        _, (region,) = find_regions(bump(0.5, 0.5, radius), Window(0, 0, 400, 400), SegmentOptions(), Calibration())
        window = closer_window(region, (400, 400), Calibration())
        assert window is not None
        sizes.append(window.width)
    assert sizes[0] == sizes[1] >= 1.8 * 40


@pytest.mark.parametrize(
    "x, radius, badly",
    [(0.5, 0.2, False), (0.8, 0.1, True), (0.5, 0.55, True)],
    ids=["in the middle", "off the middle", "cut off"],
)
def test_a_window_that_does_not_fit_its_object_is_known(x: float, radius: float, badly: bool) -> None:
    _, (region,) = find_regions(bump(x, 0.5, radius), Window(50, 50, 150, 150), SegmentOptions(), Calibration())
    assert fits_badly(region, (300, 300)) == badly


def test_a_window_at_the_pictures_own_edges_fits() -> None:
    _, (region,) = find_regions(bump(0.8, 0.5, 0.1), Window(0, 0, 100, 100), SegmentOptions(), Calibration())
    assert not fits_badly(region, (100, 100))
