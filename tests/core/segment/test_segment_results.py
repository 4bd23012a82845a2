import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from core.segment.results import CroppedMask, union


@pytest.fixture
def mask() -> np.ndarray:
    rows, columns = np.mgrid[:40, :60]
    return (rows - 15) ** 2 + (columns - 30) ** 2 < 100


def test_a_cropped_mask_is_the_mask(mask: np.ndarray) -> None:
    cropped = CroppedMask.from_full(mask)
    assert cropped.bits.shape == (19, 19)
    assert cropped.box_xyxy == (21, 6, 40, 25)
    assert cropped.area == mask.sum()
    np.testing.assert_array_equal(cropped.full(), mask)
    assert cropped.bits.base is None, "the pixels around it are kept in memory"


def test_an_empty_mask_has_no_area() -> None:
    empty = CroppedMask.from_full(np.zeros((5, 7), bool))
    assert empty.area == 0
    assert empty.full().shape == (5, 7)
    assert empty.iou(empty) == 0
    assert empty.polygons() == []


def test_overlap_is_that_of_the_full_masks(mask: np.ndarray) -> None:
    other = np.roll(mask, (3, -8), axis=(0, 1))
    one, two = CroppedMask.from_full(mask), CroppedMask.from_full(other)
    assert one.overlap(two) == (mask & other).sum()
    assert one.iou(two) == pytest.approx((mask & other).sum() / (mask | other).sum())
    far = CroppedMask.from_full(np.roll(mask, 22, axis=1) & (np.arange(60) > 45))
    assert one.overlap(far) == 0
    np.testing.assert_array_equal(union([one, two], (40, 60)), mask | other)


def test_rle_is_read_by_pycocotools(mask: np.ndarray) -> None:
    encoded = CroppedMask.from_full(mask).rle()
    assert encoded["size"] == [40, 60]
    np.testing.assert_array_equal(coco.decode(encoded), mask)


def test_rle_is_that_of_the_whole_picture() -> None:
    random = np.random.default_rng(0)
    whole = np.ones((6, 8), bool)
    masks = [whole, ~whole, np.zeros((0, 0), bool), whole[:, :0]]
    for _ in range(300):
        height, width = random.integers(1, 12, 2)
        mask = np.zeros((height, width), bool)
        top, bottom = sorted(random.integers(0, height + 1, 2))
        left, right = sorted(random.integers(0, width + 1, 2))
        if random.integers(3) == 0:
            top, bottom = 0, height
        mask[top:bottom, left:right] = random.random((bottom - top, right - left)) < random.choice([0.3, 0.8, 1])
        masks.append(mask)
    for mask in masks:
        expected = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        for cropped in (CroppedMask.from_full(mask), CroppedMask(mask, 0, 0, (mask.shape[0], mask.shape[1]))):
            assert cropped.rle() == {"size": list(mask.shape), "counts": expected}


def test_rle_of_a_small_mask_takes_no_pass_over_a_large_picture(mask: np.ndarray) -> None:
    small = CroppedMask.from_full(mask)
    large = CroppedMask(small.bits, 4_000, 3_000, (6_000, 6_500))
    tracemalloc.start()
    encoded = large.rle()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert coco.area(encoded) == small.area
    assert peak < 1_000_000


def test_polygons_enclose_the_mask(mask: np.ndarray) -> None:
    two_parts = mask | np.roll(mask, 25, axis=1) & (np.arange(60) > 42)
    polygons = CroppedMask.from_full(two_parts).polygons(tolerance=0.5)
    assert len(polygons) == 2
    drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, 40, 60))).astype(bool)
    assert (drawn & two_parts).sum() / (drawn | two_parts).sum() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 20), (2, 20), (3, 2), (3, 3), (1, 300)])
def test_what_is_thin_or_tiny_has_a_polygon_too(size: tuple[int, int]) -> None:
    mask = np.zeros((320, 320), bool)
    mask[7 : 7 + size[0], 5 : 5 + size[1]] = True
    (polygon,) = CroppedMask.from_full(mask).polygons()
    assert 6 <= len(polygon) <= 24
    drawn = coco.decode(coco.frPyObjects([polygon], 320, 320))[..., 0].astype(bool)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.6


def test_every_part_of_a_thin_line_has_a_polygon() -> None:
    line = np.eye(40, dtype=bool)
    drawn = coco.decode(coco.merge(coco.frPyObjects(CroppedMask.from_full(line).polygons(), 40, 40))).astype(bool)
    np.testing.assert_array_equal(drawn, line)
    assert CroppedMask.from_full(~line[:3, :3]).polygons()


def test_a_hole_of_a_pixel_is_no_polygon() -> None:
    mask = np.ones((9, 9), bool)
    mask[4, 4] = False
    assert len(CroppedMask.from_full(mask).polygons()) == 1


def test_a_polygon_leaves_out_holes() -> None:
    ring = np.zeros((30, 30), bool)
    ring[5:25, 5:25] = True
    ring[10:20, 10:20] = False
    assert len(CroppedMask.from_full(ring).polygons()) == 1


def test_png_holds_the_mask(mask: np.ndarray) -> None:
    png = CroppedMask.from_full(mask).png()
    np.testing.assert_array_equal(np.array(Image.open(BytesIO(png))), mask * 255)
    assert b"IDAT\x78\x01" in png  # by zlib's fastest level: there may be a hundred of forty megapixels
