import hashlib
import io
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from core import images
from core.data import DataError
from core.readers import CIFAR10_CLASSES, load_dataset

Row = tuple[bytes | None, int | None]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def picture(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def rows(n: int) -> list[Row]:
    return [(encode(picture(i)), i % 10) for i in range(n)]


def write_parquet(file: Path, content: list[Row], picture_column: str = "img", label_column: str = "label") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": data, "path": None} for data, _ in content]
    pq.write_table(pa.table({picture_column: cells, label_column: [label for _, label in content]}), file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", rows(40))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", rows(20))
    return tmp_path


def test_hub_parquet_is_read_in_full(root: Path) -> None:
    data = load_dataset("cifar10", root)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 20)
    assert data.class_names == CIFAR10_CLASSES
    assert np.array_equal(data.test.images[7], picture(7))
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]
    assert data.source == "cifar10 parquet, PNG"


def test_several_files_and_folders_of_the_hub_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "plain_text"
    for part in range(2):
        write_parquet(folder / f"train-0000{part}-of-00002.parquet", rows(20), picture_column="image")
    write_parquet(folder / "test-00000-of-00001.parquet", rows(10), picture_column="image")
    assert len(load_dataset("cifar10", tmp_path).train) == 30


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    content = [(encode(picture(i)), i % 100) for i in range(200)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", content, label_column="fine_label")
    data = load_dataset("cifar100", tmp_path)
    assert data.test.labels.max() == 99
    assert len(data.class_names) == 100


def test_the_second_run_reads_the_cache(root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = load_dataset("cifar10", root)
    made = {p: p.stat().st_mtime_ns for p in cache.rglob("*.npy")}
    assert np.array_equal(load_dataset("cifar10", root).train.images, first.train.images)
    assert {p: p.stat().st_mtime_ns for p in made} == made
    for file in made:
        file.write_bytes(b"\x93NUMPY damaged")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_dataset("cifar10", root).train.images, first.train.images)
    assert "decoding again" in caplog.text


def test_a_changed_file_is_read_anew(root: Path) -> None:
    load_dataset("cifar10", root)
    write_parquet(root / "test-00000-of-00001.parquet", rows(10))
    assert len(load_dataset("cifar10", root).test) == 10


def test_what_no_run_has_used_for_a_month_leaves_the_cache(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_dataset("cifar10", root, cache_dir=cache)
    (old,) = cache.iterdir()
    foreign = [cache / "cifar10-notes", cache / "cifar100-00000000000000000000"]
    for folder in foreign:
        folder.mkdir()
    for folder in (old, *foreign):
        os.utime(folder, (0, 0))
    load_dataset("cifar10", root, cache_dir=cache)  # used again
    write_parquet(root / "test-00000-of-00001.parquet", rows(10))
    load_dataset("cifar10", root, cache_dir=cache)
    assert old.is_dir() and len(list(cache.iterdir())) == 4
    os.utime(old, (0, 0))
    write_parquet(root / "test-00000-of-00001.parquet", rows(15))
    load_dataset("cifar10", root, cache_dir=cache)
    assert not old.exists() and all(folder.is_dir() for folder in foreign)


def test_an_unwritable_cache_only_warns(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert len(load_dataset("cifar10", root, cache_dir=blocked).train) == 30
    assert "not cached" in caplog.text


GOOD = encode(picture(0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((None, 1), "row 3: there are no picture bytes"),
        ((b"", 1), "row 3: there are no picture bytes"),
        ((b"not a picture", 1), "row 3: the bytes are not a picture"),
        ((GOOD[: len(GOOD) // 2], 1), "row 3: the picture is damaged"),
        ((encode(picture(0, size=31)), 1), "row 3: the picture is 31x31, expected 32x32"),
        ((GOOD, 10), r"row 3: label 10 is not one of 0\.\.9"),
        ((GOOD, -1), "row 3: label -1"),
        ((GOOD, None), "row 3: label None"),
    ],
)
def test_a_bad_row_is_named(root: Path, bad: Row, message: str) -> None:
    file = root / "train-00000-of-00001.parquet"
    write_parquet(file, [*rows(3), bad, *rows(3)])
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("cifar10", root)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense PAR1", None])
def test_an_unreadable_parquet_is_named(root: Path, content: bytes | None) -> None:
    file = root / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=file.name):
        load_dataset("cifar10", root)


@pytest.mark.parametrize("column", ["img", "label"])
def test_a_missing_column_is_named_with_those_there(root: Path, column: str) -> None:
    names = {"img": "picture", "label": "label"} if column == "img" else {"img": "img", "label": "kind"}
    write_parquet(root / "train-00000-of-00001.parquet", rows(4), names["img"], names["label"])
    with pytest.raises(DataError, match=f"has no column '{column}'.*its columns are"):
        load_dataset("cifar10", root)


def test_one_split_alone_is_not_enough(root: Path) -> None:
    (root / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no test-\*\.parquet"):
        load_dataset("cifar10", root)


def test_missing_data_names_the_folder_and_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data-root DIR.*--dataset shapes") as caught:
        load_dataset("cifar10", tmp_path / "nowhere", download=False)
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="'mnist'; choose one of cifar10"):
        load_dataset("mnist")


def write_torchvision_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small CIFAR-10 in torchvision's layout, with the checksums torchvision compares set to its own."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    sums: dict[str, str] = {}

    def write(name: str, content: dict[str, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for part, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.stack([picture(100 * part + i) for i in range(20)])
        planes = pixels.transpose(0, 3, 1, 2).reshape(20, -1)
        write(name, {"data": planes, "labels": [i % 10 for i in range(20)]})
    write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in sums if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})


def test_torchvisions_folder_is_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torchvision_cifar10(tmp_path, monkeypatch)
    data = load_dataset("cifar10", tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (90, 10, 20)
    assert np.array_equal(data.test.images[3], picture(503))
    assert "lossless" in data.source
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(DataError, match="incomplete or damaged"):
        load_dataset("cifar10", tmp_path)


def write_folder(root: Path, names: tuple[str, ...], count: int, size: int = 8) -> None:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(encode(picture(10 * label + i, size)))


def test_an_image_folder_is_split_three_ways(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 20)
    data = load_dataset("folder", tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (32, 4, 4)


def test_an_image_folder_may_bring_its_test_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"), 10)
    write_folder(tmp_path / "test", ("cat", "dog"), 3)
    assert len(load_dataset("folder", tmp_path).test) == 6


def test_an_image_folder_may_bring_its_validation_split(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 7), ("test", 3)):
        write_folder(tmp_path / split, ("cat", "dog"), count)
    for _ in range(2):  # the second time from the cache
        data = load_dataset("folder", tmp_path)
        assert (len(data.train), len(data.val), len(data.test)) == (20, 14, 6)
    write_folder(tmp_path / "valid", ("cat", "dog"), 1)
    with pytest.raises(DataError, match="two folders to validate on; keep one of val, valid, validation"):
        load_dataset("folder", tmp_path)


def test_what_file_managers_hide_in_an_image_folder_is_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"), 10)
    write_folder(tmp_path / "test", ("cat", "dog"), 3)
    for split in ("train", "test"):
        write_folder(tmp_path / split, (".thumbnails",), 1)
        (tmp_path / split / "cat" / "._0.png").write_bytes(b"no picture")
    data = load_dataset("folder", tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train) + len(data.val), len(data.test)) == (20, 6)


def test_splits_without_a_test_split_are_not_taken_for_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_folder(tmp_path / split, ("cat", "dog"), 10)
    with pytest.raises(DataError, match="has train and val, which are splits and no classes, and no folder 'test'"):
        load_dataset("folder", tmp_path)


def test_awkward_pictures_of_a_folder_are_read_as_the_service_reads_them(tmp_path: Path) -> None:
    """Training and serving see the same pixels; `size` is that of the upright picture."""
    upright = picture(0, 12)[:8]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    awkward: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "deep.png": (Image.fromarray(upright[..., 0].astype(np.uint16) * 256 + 7), {}),
        "seethrough.png": (Image.fromarray(np.dstack([upright, upright[..., 0]])), {}),
        "turned.jpg": (Image.fromarray(np.ascontiguousarray(np.rot90(upright))), {"exif": exif}),
    }
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for name, (image, options) in awkward.items():
                image.save(folder / name, **options)
    expected = [images.decode(p.read_bytes(), max_pixels=1000) for p in sorted((tmp_path / "test" / "cat").iterdir())]
    assert [list(image.shape) for image in expected] == [[8, 12, 3]] * 3
    assert np.array_equal(load_dataset("folder", tmp_path).test.images, expected * 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_plain_rgb_pictures_are_what_pillow_decodes(tmp_path: Path, kind: str) -> None:
    content: list[Row] = [(encode(picture(i), kind), i % 10) for i in range(20)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", content)
    plain = [np.asarray(Image.open(io.BytesIO(data or b""))) for data, _ in content]
    assert np.array_equal(load_dataset("cifar10", tmp_path).test.images, plain)


def test_image_folder_faults_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 4)
    odd = tmp_path / "dog" / "9.png"
    odd.write_bytes(encode(picture(0, size=9)))
    with pytest.raises(DataError, match=r"9\.png: the picture is 9x9, expected 8x8"):
        load_dataset("folder", tmp_path)
    odd.unlink()
    (tmp_path / "bird").mkdir()
    with pytest.raises(DataError, match="bird holds no pictures"):
        load_dataset("folder", tmp_path)
    (tmp_path / "bird" / "0.png").write_bytes(encode(picture(0)))
    with pytest.raises(DataError, match=r"bird holds one picture .*at least 3 needed"):
        load_dataset("folder", tmp_path)
    (tmp_path / "bird" / "0.png").unlink()
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="0 sub-folders"):
        load_dataset("folder", tmp_path / "bird")


def test_shapes_are_the_same_with_and_without_cache(tmp_path: Path) -> None:
    first = load_dataset("shapes", cache_dir=tmp_path)
    second = load_dataset("shapes", cache_dir=tmp_path)
    assert np.array_equal(first.train.images, second.train.images)
    assert (len(first.train), len(first.val), len(first.test)) == (18_000, 2_000, 2_000)
