"""The folder of a job: whole files, refusals, and a listing that must not have changed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nodes.command import UsageError
from serve.batch_input import find_input
from serve.batch_job import ERROR_SCHEMA, ERRORS, RESULTS, Job, open_job, read_parts, read_shard, write_part
from serve.batch_storage import Store, resolve

SETTINGS = {"task": "segment", "prompts": ["star"], "threshold": "auto"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(b"-" * number)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def begin(pictures: Path, output: Path, shard_size: int | None = 4, **other: object) -> Job:
    return open_job(Store.at(str(output)), SETTINGS | other, find_input(str(pictures)), shard_size)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_listing_is_written_once_and_read_by_shard(pictures: Path, output: Path) -> None:
    job = begin(pictures, output)
    assert (job.num_pictures, job.num_shards, job.done()) == (10, 3, set())
    shards = [read_shard(job.store, number) for number in range(3)]
    assert [image_id for shard in shards for image_id, _ in shard] == list(range(1, 11))
    assert [(item.path, item.size) for shard in shards for _, item in shard] == [(b"%d.png" % n, n) for n in range(10)]
    assert job.pictures_in({0, 2}) == 6


def test_a_job_goes_on_where_parts_are_missing(pictures: Path, output: Path) -> None:
    row = {"image_id": 1, "picture": "0.png", "error": "-"}
    write_part(begin(pictures, output).store, RESULTS, 1, [row], ERROR_SCHEMA)
    (output / RESULTS / ".fresh-of-a-killed-process").write_bytes(b"PAR")
    again = begin(pictures, output, None)
    assert again.done() == {1} and again.num_shards == 3
    again.clean()
    assert [file.name for file in (output / RESULTS).iterdir()] == ["part-000001.parquet"]


def test_files_of_others_among_the_parts_are_let_be(pictures: Path, output: Path) -> None:
    job = begin(pictures, output)
    row = {"image_id": 1, "picture": "0.png", "error": "-"}
    for folder in (RESULTS, ERRORS):
        write_part(job.store, folder, 1, [row], ERROR_SCHEMA)
        for name in (".DS_Store", ".nfs0001", "part-000001.parquet~", "part-000002 (copy).parquet", "notes.txt"):
            (output / folder / name).write_bytes(b"-")
    again = begin(pictures, output)
    assert again.done() == {1}
    again.begin_run({})
    for folder in (RESULTS, ERRORS):
        assert [table.num_rows for table in read_parts(again.store, folder)] == [1]
        assert len(list((output / folder).iterdir())) == 6


def test_a_start_that_was_killed_while_it_listed_begins_again(pictures: Path, output: Path) -> None:
    job = begin(pictures, output)
    job.record["listing"] = None
    job.save()
    assert begin(pictures, output).num_pictures == 10


def test_other_settings_are_refused_by_name_and_nothing_is_changed(pictures: Path, output: Path) -> None:
    begin(pictures, output)
    before = snapshot(output)
    with pytest.raises(UsageError) as refused:
        begin(pictures, output, 8, threshold=0.4, prompts=["ring"])
    message = str(refused.value)
    assert "threshold: 'auto' there, 0.4 now" in message
    assert "prompts: ['star'] there, ['ring'] now" in message
    assert "shard_size: 4 there, 8 now" in message
    assert "task" not in message and "Nothing was changed" in message
    assert snapshot(output) == before


@pytest.mark.parametrize(
    ("change", "was"), [("new", "10, and now there are 11"), ("grown", "as many, but of other names")]
)
def test_a_changed_input_is_refused(change: str, was: str, pictures: Path, output: Path) -> None:
    begin(pictures, output)
    before = snapshot(output)
    (pictures / ("99.png" if change == "new" else "3.png")).write_bytes(b"something else")
    with pytest.raises(UsageError, match=f"the input has changed.*{was}"):
        begin(pictures, output)
    assert snapshot(output) == before


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("thesis.txt", "years of work", "is not empty, and holds no batch.json"),
        ("batch.json", "{", "is not of an earlier run"),
        ("batch.json", '{"version": 99}', "has version 99"),
    ],
)
def test_a_folder_with_other_things_is_left_alone(
    name: str, content: str, expected: str, pictures: Path, output: Path
) -> None:
    output.mkdir()
    (output / name).write_text(content)
    with pytest.raises(UsageError, match=expected):
        begin(pictures, output)
    assert snapshot(output) == {output / name: content.encode()}


def test_a_file_is_no_output(pictures: Path, output: Path) -> None:
    output.write_text("-")
    with pytest.raises(UsageError, match="is a file; give a folder"):
        begin(pictures, output)


def test_a_listing_that_fails_leaves_nothing_behind(pictures: Path, output: Path) -> None:
    (pictures / "z.parquet").write_bytes(b"-")  # found last, when the listing is being written
    with pytest.raises(UsageError, match="both pictures and parquet"):
        begin(pictures, output, 1)
    assert snapshot(output) == {}
    (pictures / "z.parquet").unlink()
    assert begin(pictures, output).num_pictures == 10


def test_a_file_whose_writing_fails_never_appears(output: Path) -> None:
    store = Store.at(str(output))
    store.write("a/b.json", b"old")
    with pytest.raises(ZeroDivisionError), store.writing("a/b.json") as file:
        file.write(b"half of the ne")
        raise ZeroDivisionError
    assert store.read("a/b.json") == b"old" and store.names("a") == ["b.json"]
    assert [file.name for file in (output / "a").iterdir()] == ["b.json"]


def test_what_killed_workers_were_writing_is_swept(pictures: Path, output: Path) -> None:
    job = begin(pictures, output)
    before = snapshot(output)
    for name in (".", "listing", "results", "errors", "overlays/part-000000"):
        (output / name).mkdir(parents=True, exist_ok=True)
        (output / name / ".fresh-0123").touch()
    job.clean()
    assert snapshot(output) == before


def test_a_password_in_the_input_is_not_kept_and_the_job_goes_on_with_another(pictures: Path, output: Path) -> None:
    source, store = find_input(str(pictures)), Store.at(str(output))
    open_job(store, SETTINGS, replace(source, url="s3://me:secret@bucket/in"), 4)
    assert json.loads((output / "batch.json").read_text())["input"] == "s3://me:***@bucket/in"
    assert open_job(store, SETTINGS, replace(source, url="s3://me:other@bucket/in"), 4).num_pictures == 10
    assert not any(b"secret" in data or b"other" in data for data in snapshot(output).values())


def test_a_url_is_written_and_read_as_a_folder_is(pictures: Path) -> None:
    store = Store(*resolve("memory://bucket/out"))
    job = open_job(store, SETTINGS, find_input(str(pictures)), 4)
    assert read_shard(store, 2)[0][0] == 9
    write_part(store, RESULTS, 0, [], ERROR_SCHEMA)
    assert open_job(store, SETTINGS, find_input(str(pictures)), None).done() == {0}
    assert json.loads(store.read("batch.json"))["listing"] == job.record["listing"]
