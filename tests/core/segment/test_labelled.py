import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.segment.labelled import read_coco
from core.segment.results import CroppedMask


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((40, 60), bool)
    mask[5:15, 10:30] = True
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "boat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]]},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": CroppedMask.from_full(mask).rle()},
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_is_read(coco: Path) -> None:
    (picture,) = read_coco(coco / "labels.json", coco)
    assert picture.prompts == ("cat", "dog", "boat")
    (cat,), (dog,), boats = picture.truths
    assert cat.box_xyxy == dog.box_xyxy == (10, 5, 30, 15)
    assert boats == ()


def test_a_crowd_is_neither_an_object_nor_absent(coco: Path) -> None:
    file = coco / "labels.json"
    content = json.loads(file.read_text())
    content["annotations"].append({"id": 3, "image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": None})
    file.write_text(json.dumps(content))
    (picture,) = read_coco(file, coco)
    assert picture.prompts == ("cat", "dog")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"images": [{"id": 1, "file_name": "../../etc/passwd"}]}, "outside"),
        ({"images": [{"id": 1, "file_name": "b.png"}]}, "b.png"),
        ({"categories": None}, "COCO"),
        ({"annotations": [{"id": 7, "image_id": 1, "category_id": 1}]}, "annotation 7 cannot be read"),
        (
            {"annotations": [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": {"counts": "?"}}]},
            "annotation 7",
        ),
    ],
)
def test_bad_coco_is_refused(coco: Path, change: dict[str, object], problem: str) -> None:
    file = coco / "labels.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=problem):
        read_coco(file, coco)
