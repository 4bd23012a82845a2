"""What the workers write, against the models called directly; and the files that are made of it."""

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batch_support import PROMPTS, results, scene_png, write_hub_parquet, write_scenes
from PIL import Image

from benchmarks.object_store import BUCKET, object_store
from core.augment import normalise
from core.checkpoint import load
from core.image_classifier import ImageClassifier
from core.images import decode
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from serve import batch_reader
from serve.batch_finish import COCO_FILE, ERRORS_FILE, finish
from serve.batch_input import find_input
from serve.batch_job import ERROR_SCHEMA, ERRORS, Job, attempts_file, open_job, write_part
from serve.batch_models import Answers, Classification, Picture, Segmentation, Task
from serve.batch_reader import _cells
from serve.batch_storage import Store
from serve.batch_worker import ShardWorker, Work

MAX_PIXELS = 1_000_000
BATCH_SIZE = 4
SEGMENT = Segmentation(prompts=PROMPTS, options=SegmentOptions())


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return SEGMENT.load("cpu")


@pytest.fixture
def classify(checkpoint_folder: Path) -> Task:
    """Where it does not matter what is asked of the pictures."""
    return Classification(folder=checkpoint_folder, top_k=1)


@dataclass(frozen=True, kw_only=True)
class FailsOn(Classification):
    """Classifies all but these pictures, or any that share a call with one of them."""

    names: Collection[str]

    def answer(self, classifier: ImageClassifier, pictures: Sequence[Picture]) -> Answers:
        if any(picture.name in self.names for picture in pictures):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().answer(classifier, pictures)


class Run:
    """A job whose shards are worked on here, one after another, as Ray's actors do it elsewhere."""

    def __init__(self, task: Task, url: Path | str, output: Path | str, *, shard_size: int = 8, **how: Any) -> None:
        settings = {"task": "segment" if isinstance(task, Segmentation) else "classify", "prompts": list(PROMPTS)}
        source = find_input(str(url), **how)
        self.output = Path(output)
        self.job: Job = open_job(Store.at(str(output)), settings, source, shard_size)
        self.work = Work(
            task=task,
            source=source,
            store=self.job.store,
            run="run",
            max_pixels=MAX_PIXELS,
            batch_size=BATCH_SIZE,
            threads=1,
            device="cpu",
        )

    def do(self) -> list[dict[str, Any]]:
        worker = ShardWorker(self.work)
        shards = [worker(pa.table({"shard": [shard]})).to_pylist()[0] for shard in range(self.job.num_shards)]
        self.counts = finish(self.job) if not any(shard["stopped"] for shard in shards) else {}
        return shards

    @property
    def results(self) -> pd.DataFrame:
        return results(self.output)

    @property
    def errors(self) -> dict[str, str]:
        frame = pd.read_parquet(self.output / ERRORS_FILE)
        return dict(zip(frame["picture"], frame["error"], strict=True))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ten scenes, and among them what cannot be used."""
    folder = tmp_path_factory.mktemp("mixed")
    write_scenes(folder, 10)
    (folder / "more").mkdir()
    (folder / "more" / "000.png").write_bytes(scene_png(50))  # of another's name
    (folder / "0002-cut.png").write_bytes(scene_png(2)[:-500])
    (folder / "0004-text.jpg").write_text("not a picture")
    (folder / "0005-empty.png").touch()
    Image.new("RGB", (1200, 1000)).save(folder / "0006-large.png")
    (folder / "0007-dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "readme.txt").write_text("left out")
    task = Segmentation(prompts=PROMPTS, options=SegmentOptions(), overlays=True)
    run = Run(task, folder, tmp_path_factory.mktemp("out") / "job")
    run.do()
    return run


def test_rows_are_the_answers_of_the_segmenter(mixed: Run, segmenter: Segmenter) -> None:
    frame = mixed.results
    root = Path(mixed.work.source.root)
    names = list(dict.fromkeys(frame["picture"]))
    assert names == [f"{number:03d}.png" for number in range(10)] + ["more/000.png"]
    assert frame["image_id"].is_monotonic_increasing
    seen = 0
    for name in names:
        image = decode((root / name).read_bytes(), max_pixels=MAX_PIXELS)
        (answers,) = segmenter.segment([image], [PROMPTS])
        mine = frame[frame["picture"] == name]
        assert (mine["width"] == image.shape[1]).all() and (mine["height"] == image.shape[0]).all()
        for answer in answers:
            rows = mine[mine["prompt"] == answer.prompt]
            assert len(rows) == max(1, len(answer.instances))
            assert (rows["found"] == answer.found).all()
            np.testing.assert_allclose(rows["presence"], answer.presence, rtol=1e-4)
            np.testing.assert_allclose(rows["threshold"], answer.threshold, rtol=1e-4)
            if not answer.found:
                assert rows["reason"].item() == answer.reason and rows["mask_rle"].isna().all()
            for row, instance in zip(rows.itertuples(), answer.instances, strict=False):
                seen += 1
                assert row.mask_rle == instance.cropped.rle()["counts"]
                assert (row.left, row.top, row.right, row.bottom) == instance.box_xyxy
                assert (row.area, row.source) == (instance.area, instance.source)
                assert row.score == pytest.approx(instance.score, rel=1e-4)
    assert seen > 3
    assert set(frame.loc[frame["prompt"] == "zebra", "found"]) == {False}


def test_what_cannot_be_used_is_reported_with_its_reason(mixed: Run) -> None:
    errors = mixed.errors
    assert set(errors) == {
        "0002-cut.png",
        "0004-text.jpg",
        "0005-empty.png",
        "0006-large.png",
        "0007-dangling.png",
    }
    assert "cut short" in errors["0002-cut.png"]
    assert "not a picture" in errors["0004-text.jpg"]
    assert "empty" in errors["0005-empty.png"]
    assert "1200 x 1000 pixels; at most 1,000,000" in errors["0006-large.png"]
    assert "No such file" in errors["0007-dangling.png"]
    assert mixed.counts["unusable"] == 5 and mixed.counts["answered"] == 11
    assert mixed.work.source.left_out == {".txt": 1}


def test_pycocotools_loads_the_instances_and_decodes_their_masks(
    mixed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(mixed.output / COCO_FILE))
    frame = mixed.results
    found = frame[frame["found"]]
    assert len(coco.anns) == len(found) == mixed.counts["instances"]
    assert {image["file_name"] for image in coco.imgs.values()} == set(frame["picture"])
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(PROMPTS)
    for annotation, row in zip(coco.loadAnns(sorted(coco.anns)), found.itertuples(), strict=True):
        mask = coco.annToMask(annotation)
        assert mask.shape == (row.height, row.width) and mask.sum() == annotation["area"] == row.area
        left, top, width, height = map(int, annotation["bbox"])
        assert mask[top : top + height, left : left + width].sum() == row.area
        assert coco.loadCats(annotation["category_id"])[0]["name"] == row.prompt


def test_overlays_have_a_file_a_picture_and_namesakes_do_not_meet(mixed: Run) -> None:
    overlays = sorted((mixed.output / "overlays").rglob("*.jpg"))
    assert len(overlays) == 11
    assert sum(file.name.endswith("-000.png.jpg") for file in overlays) == 2
    image = decode(overlays[0].read_bytes(), max_pixels=MAX_PIXELS)
    assert image.shape[:2] == tuple(mixed.results.loc[0, ["height", "width"]])


def test_the_hub_layout_gives_names_and_rows_without_bytes_are_reported(tmp_path: Path) -> None:
    cells = [scene_png(number, 64) for number in range(7)]
    write_hub_parquet(tmp_path / "in.parquet", [*cells[:3], None, b"broken", *cells[3:]], rows_a_group=5)
    task = Segmentation(prompts=("star",), options=SegmentOptions(refine=False))
    run = Run(task, tmp_path / "in.parquet", tmp_path / "out", shard_size=4, image_column="img")
    run.do()
    names = list(dict.fromkeys(run.results["picture"]))
    assert names == [f"in-{number}.png" for number in (0, 1, 2, 5, 6, 7, 8)]
    assert run.errors["in-3.png"] == "The row holds no bytes of a picture."
    assert "not a picture" in run.errors["in-4.png"]


def test_plain_bytes_are_named_by_a_column_or_by_file_and_row(tmp_path: Path) -> None:
    columns = {"image": [scene_png(number, 64) for number in range(3)], "key": [30, 10, 20]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    task = Segmentation(prompts=("star",), options=SegmentOptions(refine=False))
    for column, expected in (("key", ["30", "10", "20"]), (None, [f"a.parquet#{row}" for row in range(3)])):
        run = Run(task, tmp_path / "a.parquet", tmp_path / f"by {column}", id_column=column)
        run.do()
        assert list(dict.fromkeys(run.results["picture"])) == expected


def test_damage_within_a_parquet_file_is_reported_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    rows = [{"image": scene_png(number, 64)} for number in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4, compression="none")
    second = pq.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = second.dictionary_page_offset or second.data_page_offset
    data[start : start + 64] = b"\xff" * 64  # the page's header
    file.write_bytes(data)
    task = Segmentation(prompts=("star",), options=SegmentOptions(refine=False))
    run = Run(task, file, tmp_path / "out", shard_size=4)
    run.do()
    assert run.results["image_id"].unique().tolist() == [1, 2, 3, 4]
    assert list(run.errors) == [f"in.parquet#{row}" for row in range(4, 8)]
    assert all("cannot be read here" in error for error in run.errors.values())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"image": [b"x"]}, ["no such row any more"]),
        ({"picture": [b"x", b"x"]}, ["cannot be read here", "cannot be read here"]),
    ],
)
def test_a_parquet_file_that_has_changed_is_reported_row_by_row(
    changed: dict[str, list[bytes]], expected: list[str], classify: Task, tmp_path: Path
) -> None:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image": [scene_png(0, 32), scene_png(1, 32)]}), file)
    run = Run(classify, file, tmp_path / "out")
    pq.write_table(pa.table(changed), file)
    (done,) = run.do()
    assert done["stopped"] is None and done["unusable"] == 2
    said = [run.errors[f"in.parquet#{row}"] for row in (0, 1)]
    assert all(part in text for part, text in zip(expected, said[-len(expected) :], strict=True)), said


def test_hostile_names_do_not_leave_the_output(tmp_path: Path) -> None:
    names = ["../../../escaped", "/etc/passwd", "a\0b", "", "é" * 300]
    columns = {"image": [scene_png(0, 64)] * len(names), "key": names}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    task = Segmentation(prompts=("star",), options=SegmentOptions(refine=False), overlays=True)
    run = Run(task, tmp_path / "a.parquet", tmp_path / "out", id_column="key")
    before = set(tmp_path.rglob("*"))
    run.do()
    written = {file for file in set(tmp_path.rglob("*")) - before if file.suffix == ".jpg"}
    assert len(written) == len(names)
    assert {file.parent for file in written} == {run.output / "overlays" / "part-000000"}
    assert list(dict.fromkeys(run.results["picture"])) == names


def test_classes_are_those_of_the_checkpoint(checkpoint_folder: Path, pictures: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate(pictures[:6]):
        (folder / f"{number}.png").write_bytes(data)
    run = Run(Classification(folder=checkpoint_folder, top_k=3), folder, tmp_path / "out")
    run.do()
    checkpoint = load(checkpoint_folder)
    images = torch.from_numpy(np.stack([decode(data, max_pixels=MAX_PIXELS) for data in pictures[:6]]))
    with torch.inference_mode():
        pixels = normalise(images, torch.tensor(checkpoint.mean), torch.tensor(checkpoint.std))
        expected = checkpoint.model(pixels).softmax(dim=1)
    frame = run.results
    assert frame["rank"].tolist() == [1, 2, 3] * 6
    for number, shares in enumerate(expected):
        best = shares.sort(descending=True)
        mine = frame[frame["picture"] == f"{number}.png"]
        assert mine["label"].tolist() == [checkpoint.class_names[index] for index in best.indices[:3]]
        np.testing.assert_allclose(mine["score"], best.values[:3], rtol=1e-4)
    assert frame.loc[frame["rank"] == 1, "score"].nunique() == 6
    assert not (tmp_path / "out" / COCO_FILE).exists()


def stopped(shards: list[dict[str, Any]]) -> list[bool]:
    return [shard["stopped"] is not None and "cannot be fetched now" in shard["stopped"] for shard in shards]


@pytest.mark.parametrize(("shard_size", "done"), [(6, set()), (4, set()), (2, {0}), (1, {0, 1, 2})])
def test_an_input_that_vanishes_stops_the_job_and_is_no_picture_s_fault(
    shard_size: int, done: set[int], classify: Task, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_scenes(folder, 6, side=64)
    run = Run(classify, folder, tmp_path / "out", shard_size=shard_size)
    shutil.move(folder, tmp_path / "unmounted")
    assert stopped(run.do()) == [shard not in done for shard in range(run.job.num_shards)]
    assert run.job.done() == done  # small shards: three lost pictures could each have a reason of their own
    shutil.move(tmp_path / "unmounted", folder)
    assert not any(stopped(run.do()))


def test_storage_that_fails_within_a_shard_leaves_it_to_be_done_again(classify: Task, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_scenes(folder, 8, side=64)
    run = Run(classify, folder, tmp_path / "out")
    away = sorted(folder.iterdir())[3:7]
    for file in away:
        file.rename(tmp_path / file.name)
    assert stopped(run.do()) == [True] and run.job.done() == set()
    for file in away[1:]:
        (tmp_path / file.name).rename(file)
    assert stopped(run.do()) == [False]
    assert list(run.errors) == ["003.png"] and "No such file" in run.errors["003.png"]


def test_a_parquet_file_that_vanishes_stops_the_job(classify: Task, tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    write_hub_parquet(file, [scene_png(number, 64) for number in range(8)], rows_a_group=4)
    run = Run(classify, file, tmp_path / "out", image_column="img")
    file.rename(tmp_path / "away")
    assert stopped(run.do()) == [True] and run.job.done() == set()
    (tmp_path / "away").rename(file)
    assert stopped(run.do()) == [False] and not run.errors


def test_an_object_store_that_fails_within_a_parquet_file_stops_the_job(
    classify: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors have no number, and neither have those of damaged pages."""
    write_hub_parquet(tmp_path / "in.parquet", [scene_png(number, 64) for number in range(8)], rows_a_group=4)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with object_store() as store:
        store.upload(tmp_path, "tables")
        run = Run(classify, f"s3://{BUCKET}/tables/in.parquet", tmp_path / "out", image_column="img")

        def cells(*which: Any) -> Iterator[Any]:
            for number, cell in enumerate(_cells(*which), 1):
                yield cell
                if number == 4:
                    store.end()

        with monkeypatch.context() as patch:
            patch.setattr(batch_reader, "_cells", cells)
            assert stopped(run.do()) == [True] and run.job.done() == set()
        store.begin()
        assert stopped(run.do()) == [False] and not run.errors


@pytest.mark.parametrize(
    ("shard_size", "batch_size", "done"), [(8, 4, set()), (8, 3, set()), (8, 1, set()), (3, 4, {0})]
)
def test_a_model_that_fails_on_every_picture_stops_the_job(
    shard_size: int, batch_size: int, done: set[int], checkpoint_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_scenes(folder, 8, side=64)
    task = FailsOn(folder=checkpoint_folder, top_k=1, names=[file.name for file in folder.iterdir()])
    run = Run(task, folder, tmp_path / "out", shard_size=shard_size)
    run.work = replace(run.work, batch_size=batch_size)
    said = [shard["stopped"] for shard in run.do()]
    assert [shard for shard, stop in enumerate(said) if stop is None] == sorted(done) == sorted(run.job.done())
    assert all("the model fails on every picture" in stop and "device-side" in stop for stop in said if stop)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_model_that_fails_on_some_pictures_fails_on_those_alone(
    batch_size: int, checkpoint_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_scenes(folder, 8, side=64)
    names = [f"{number:03d}.png" for number in (0, 1, 2, 4, 5, 6)]
    run = Run(FailsOn(folder=checkpoint_folder, top_k=1, names=names), folder, tmp_path / "out", shard_size=4)
    run.work = replace(run.work, batch_size=batch_size)
    assert [shard["stopped"] for shard in run.do()] == [None, None]
    assert list(run.errors) == names


@pytest.mark.parametrize("place", ["folder", "memory://out"])
def test_errors_of_a_killed_run_do_not_outlive_a_shard_without_any(place: str, classify: Task, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_scenes(folder, 2, side=64)
    output = tmp_path / "out" if place == "folder" else f"{place}{tmp_path}"
    run = Run(classify, folder, output)
    row = {"image_id": 1, "picture": "000.png", "error": "Permission denied"}
    write_part(run.job.store, ERRORS, 0, [row], ERROR_SCHEMA)
    run.job.begin_run({})
    run.do()
    assert run.counts["unusable"] == 0 and run.job.store.names(ERRORS) == []


def test_a_picture_over_which_workers_died_twice_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_scenes(folder, 4, side=64)
    run = Run(SEGMENT, folder, tmp_path / "out")
    note = attempts_file("run", 0)
    run.job.store.write(note, json.dumps({"begun": 4, "doing": 3, "deaths": {"3": 1}}).encode())
    (done,) = run.do()
    assert done["unusable"] == 1
    assert run.errors == {"002.png": "It ended the worker's process 2 times."}
    assert run.results["image_id"].unique().tolist() == [1, 2, 4]
    assert run.job.store.names(note.rpartition("/")[0]) == []


def test_a_gpu_that_pytorch_does_not_see_stops_the_job(
    classify: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_scenes(tmp_path / "in", 1, side=64)
    run = Run(classify, tmp_path / "in", tmp_path / "out")
    run.work = replace(run.work, device="cuda")
    (done,) = run.do()
    assert "has been given a GPU" in done["stopped"] and "--gpus-per-worker 0" in done["stopped"]
    assert run.job.done() == set()


def test_a_worker_without_a_gpu_leaves_those_of_its_machine_alone(
    classify: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "in", 1, side=64)
    run = Run(classify, tmp_path / "in", tmp_path / "out")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    (done,) = run.do()
    assert done["stopped"] is None and run.job.done() == {0}


def test_pictures_of_odd_shapes_are_answered_or_reported(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 2), (7, 900)):
        Image.new("RGB", (width, height), "red").save(folder / f"{width}x{height}.png")
    run = Run(SEGMENT, folder, tmp_path / "out")
    (done,) = run.do()
    assert done["stopped"] is None
    assert set(run.results["picture"]) | set(run.errors) == {file.name for file in folder.iterdir()}
