import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from core.segment.overlay import colour_of, draw_overlay
from core.segment.results import CroppedMask, Instance, PromptResult


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(rows - y, columns - x) < radius


def answer(*masks: np.ndarray) -> PromptResult:
    instances = tuple(
        Instance(
            cropped=CroppedMask.from_full(mask),
            score=0.9,
            quality=0.9,
            presence=1.0,
            evidence=(),
            source="coarse",
            why="",
        )
        for mask in masks
    )
    heatmap = np.zeros((8, 8), np.float32)
    return PromptResult(
        prompt="disc", found=True, presence=1.0, reason=None, threshold=0.5, heatmap=heatmap, instances=instances
    )


@pytest.mark.parametrize("size", [(70, 90), (700, 500), (1, 1), (20, 900)])
def test_tints_and_outlines_are_those_of_the_whole_picture_in_float32(size: tuple[int, int]) -> None:
    """Objects that overlap, reach the picture's edge, and go over many strips."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = size
    masks = [
        disc(size, x * width, y * height, r * height) for x, y, r in ((0.4, 0.4, 0.4), (0.6, 0.5, 0.3), (1, 1, 0.3))
    ]
    masks.append(np.random.default_rng(1).random(size) < 0.9)
    expected = image.astype(np.float32)
    for number, mask in enumerate(masks):
        inner = np.asarray(ndimage.binary_erosion(mask, iterations=max(1, round(min(size) / 200))), bool)
        colour = np.array(colour_of(number), np.float32)
        expected[mask] += 0.45 * (colour - expected[mask])
        expected[mask & ~inner] = colour
    drawn = draw_overlay(image, [answer(mask) for mask in masks], labels=False)
    np.testing.assert_array_equal(drawn, expected.astype(np.uint8))


@pytest.mark.parametrize("x, y", [(120, 120), (299, 100)])
def test_a_name_stands_above_its_object_and_inside_the_picture(x: int, y: int) -> None:
    image = np.full((200, 300, 3), 90, np.uint8)
    result = answer(disc((200, 300), x, y, 25))
    changed = (draw_overlay(image, [result]) != draw_overlay(image, [result], labels=False)).any(-1)
    left, top, right, bottom = CroppedMask.from_full(changed).box_xyxy
    box = result.instances[0].box_xyxy
    assert bottom == box[1] and bottom - top > 10
    assert (left == box[0] or right == 300) and right - left > 30


def test_a_large_picture_is_drawn_in_little_more_memory_than_its_copy() -> None:
    image = np.zeros((1500, 2000, 3), np.uint8)
    results = [answer(disc((1500, 2000), 900, 700, 650)), answer(disc((1500, 2000), 1000, 800, 650))]
    tracemalloc.start()
    draw_overlay(image, results)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * image.nbytes
