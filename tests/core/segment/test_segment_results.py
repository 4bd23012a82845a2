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


def test_polygons_enclose_the_mask(mask: np.ndarray) -> None:
    two_parts = mask | np.roll(mask, 25, axis=1) & (np.arange(60) > 42)
    polygons = CroppedMask.from_full(two_parts).polygons(tolerance=0.5)
    assert len(polygons) == 2
    drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, 40, 60))).astype(bool)
    assert (drawn & two_parts).sum() / (drawn | two_parts).sum() > 0.9


def test_a_polygon_leaves_out_holes() -> None:
    ring = np.zeros((30, 30), bool)
    ring[5:25, 5:25] = True
    ring[10:20, 10:20] = False
    assert len(CroppedMask.from_full(ring).polygons()) == 1


def test_png_holds_the_mask(mask: np.ndarray) -> None:
    picture = np.array(Image.open(BytesIO(CroppedMask.from_full(mask).png())))
    np.testing.assert_array_equal(picture, mask * 255)
