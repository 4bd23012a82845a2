"""Batch jobs on real Ray, as programs: killed and gone on with, on parquet, and their exit codes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from batch_support import PROMPTS, parts, results, run, scene_png, start, wait_for_parts, write_hub_parquet
from batch_support import write_scenes as write
from hosts import ray_cluster

from benchmarks.object_store import BUCKET, object_store
from benchmarks.process_memory import family

ASKED = tuple(word for prompt in PROMPTS for word in ("--prompt", prompt))
NUM_PICTURES = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures, two of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    write(folder, NUM_PICTURES)
    for number in (5, 17):
        (folder / f"{number:03d}.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures: Path) -> Path:
    """The output of a job that nothing happened to."""
    output = pictures.parent / "undisturbed"
    done = run(str(pictures), *ASKED, "--output", str(output), "--shard-size", "4", folder=pictures.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def assert_equal_outputs(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(results(one), results(other))
    pd.testing.assert_frame_equal(pd.read_parquet(one / "errors.parquet"), pd.read_parquet(other / "errors.parquet"))
    assert (one / "instances.json").read_bytes() == (other / "instances.json").read_bytes()


_WORKERS_GO_S = 8.0


def kill(process: subprocess.Popen[str]) -> None:
    """`kill -9` of the driver alone; Ray's own processes notice and go, the workers with a last shard perhaps."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(_WORKERS_GO_S)


def test_killed_and_run_again_it_does_what_is_missing_and_equals_the_undisturbed(
    pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "job", tmp_path / "log.txt"
    words = (str(pictures), *ASKED, "--output", str(output), "--shard-size", "4")
    killed = start(*words, log=log)
    wait_for_parts(output, 1, killed)
    kill(killed)
    before = {name: (output / "results" / name).stat().st_mtime_ns for name in parts(output)}
    assert 0 < len(before) < NUM_PICTURES // 4
    again = run(*words, folder=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{4 * len(before)} of them done before" in again.stdout
    assert all((output / "results" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    assert_equal_outputs(undisturbed, output)
    frame = results(output)
    assert not frame.duplicated(["image_id", "prompt", "instance"]).any()
    assert frame["image_id"].nunique() == NUM_PICTURES - 2
    record = json.loads((output / "batch.json").read_text())
    assert [one["finished"] is None for one in record["runs"]] == [True, False]
    assert record["counts"]["pictures"] == NUM_PICTURES and record["counts"]["unusable"] == 2
    assert {file.name for file in output.iterdir()} == {
        *("batch.json", "errors", "errors.parquet", "instances.json", "listing", "results"),
    }


def test_a_finished_job_is_left_as_it_is_and_other_settings_are_refused(pictures: Path, undisturbed: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")}
    done = run(str(pictures), *ASKED, "--output", str(undisturbed), folder=pictures.parent)
    assert done.returncode == 0 and "nothing is left to do" in done.stdout
    refused = run(
        *(str(pictures), *ASKED, "--output", str(undisturbed), "--threshold", "0.4", "--no-refine"),
        folder=pictures.parent,
    )
    assert refused.returncode == 2
    assert "threshold: 'auto' there, 0.4 now" in refused.stderr and "refine: True there, False now" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")} == before


def test_parquet_on_s3_is_classified_by_the_same_road(checkpoint_folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        cells = [scene_png(10 * number + row, 32) for row in range(10)]
        write_hub_parquet(tmp_path / f"train-{number}.parquet", cells, rows_a_group=5)
    with object_store() as store:
        store.upload(tmp_path, "tables")
        done = run(
            f"s3://{BUCKET}/tables/train-*.parquet",
            *("--image-column", "img", "--id-column", "label", "--classifier", str(checkpoint_folder)),
            *("--top-k", "2", "--output", f"s3://{BUCKET}/classes", "--num-workers", "1"),
            folder=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        store.download("classes", tmp_path / "classes")
    assert not done.stderr  # neither Ray nor the libraries talk between our lines
    assert f"results: s3://{BUCKET}/classes/results" in done.stdout
    frame = results(tmp_path / "classes")
    assert frame["image_id"].tolist() == list(np.arange(1, 21).repeat(2))
    assert frame["picture"].tolist() == [str(row) for _ in range(2) for row in range(10) for _ in range(2)]
    assert len(pd.read_parquet(tmp_path / "classes" / "errors.parquet")) == 0
    (only,) = json.loads((tmp_path / "classes" / "batch.json").read_text())["runs"]
    assert only["workers"] == 1 and only["cpus_per_worker"] == os.cpu_count()  # no core is left idle


@pytest.mark.slow
def test_killed_on_s3_and_run_again_it_equals_the_undisturbed(
    pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with object_store() as store:
        store.upload(pictures, "pictures")
        words = (f"s3://{BUCKET}/pictures", *ASKED, "--output", f"s3://{BUCKET}/job", "--shard-size", "4")
        killed = start(*words, log=tmp_path / "log.txt")
        while not any(name.startswith("results/") for name in store.names("job")):
            assert killed.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.1)
        kill(killed)
        again = run(*words, folder=tmp_path)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "of them done before" in again.stdout
        store.download("job", tmp_path / "job")
    assert_equal_outputs(undisturbed, tmp_path / "job")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nowhere", "--prompt", "star"), "there is no file or folder nowhere"),
        (("s3x://me:secret@there", "--prompt", "star"), "s3x://me:***@there cannot be opened"),
        (("ftp://me:sec/ret@there", "--prompt", "star"), "ftp://me:***@there cannot be opened: a / in a password"),
        (("s3://me:sec/ret@there", "--prompt", "star"), "s3://me:***@there cannot be opened: a / in a password"),
        (("empty", "--prompt", "star"), "empty holds no pictures"),
        (("full", "--prompt", "star", "--output", "full/out"), "lies within the input"),
        (("full", "--prompt", "star", "--sam2", "nobody/nothing"), "nobody/nothing"),
        (("full", "--prompt", "star", "--calibration", "full/000.png"), "cannot be read"),
        (("full", "--prompt", "star", "--prompt", "small " * 14 + "ring"), "small ring' has 15 tokens"),
        (("full", "--classifier", "empty"), "empty is not a checkpoint folder"),
        (("full", "--prompts-file", "full/000.png"), "line 1 is not UTF-8 text"),
        (("full", "--prompt", "star", "--address", "127.0.0.1:1"), "cannot be joined"),
    ],
)
def test_what_cannot_be_done_ends_with_a_sentence(
    words: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tyro

    from serve import batch
    from serve.batch_flags import Flags

    (tmp_path / "empty").mkdir()
    write(tmp_path / "full", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = () if "--output" in words else ("--output", "out")
    flags = tyro.cli(Flags, args=[*words, *output], config=(tyro.conf.FlagCreatePairsOff,))
    assert batch.main(flags) == 2
    printed = capsys.readouterr().err
    assert expected in printed and printed.startswith("error: ") and "sec" not in printed
    assert not list(Path().glob("**/*.parquet")) or "joined" in expected


def test_the_program_itself_exits_with_2(tmp_path: Path) -> None:
    done = run("nowhere", "--output", "out", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: nothing to look for") and not done.stdout


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_thousand_pictures_killed_three_times_equal_the_undisturbed_job(tmp_path: Path) -> None:
    """5% broken. Coarse masks of small pictures: the road is the same, and the models are not what is tested."""
    folder, log = tmp_path / "pictures", tmp_path / "log.txt"
    write(folder, 2000, side=64)
    rng = np.random.default_rng(0)
    broken = sorted(rng.choice(2000, 100, replace=False).tolist())
    for number in broken:
        file = folder / f"{number:03d}.png"
        file.write_bytes(file.read_bytes()[: rng.integers(0, 200)])
    words = (str(folder), "--prompt", "star", "--prompt", "red object", "--no-refine", "--output")
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "job"
    done = run(*words, str(undisturbed), folder=tmp_path, seconds=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    for _ in range(3):
        have = len(parts(output))
        process = start(*words, str(output), log=log)
        wait_for_parts(output, have + int(rng.integers(1, 15)), process, seconds=1500)
        kill(process)
    assert 0 < len(parts(output)) < len(parts(undisturbed))
    again = run(*words, str(output), folder=tmp_path, seconds=3000)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_equal_outputs(undisturbed, output)
    names = pd.read_parquet(output / "errors.parquet")["picture"].tolist()
    assert sorted(names) == sorted(f"{number:03d}.png" for number in broken)
    assert not results(output).duplicated(["image_id", "prompt", "instance"]).any()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(pictures: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "job", tmp_path / "log.txt"
    process = start(str(pictures), *ASKED, "--output", str(output), "--shard-size", "2", log=log)
    wait_for_parts(output, 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    text = log.read_text()
    assert "the same command goes on" in text and "Traceback" not in text


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "job", tmp_path / "log.txt"
    words = (str(pictures), *ASKED, "--output", str(output), "--shard-size", "4", "--num-workers", "1")
    process = start(*words, log=log)
    wait_for_parts(output, 1, process)
    os.kill(_worker(), signal.SIGKILL)
    assert process.wait(250) == 0, log.read_text()
    assert_equal_outputs(undisturbed, output)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_host_that_the_network_loses_costs_no_picture(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Its worker goes on for a while, and another host does its shards; there is none to take its place."""
    output, log = tmp_path / "job", tmp_path / "log.txt"
    words = (str(pictures), *ASKED, "--output", str(output), "--shard-size", "2")
    with ray_cluster(2) as (head, workers, address):
        process = start(*words, "--address", address, log=log, before=head.command())
        wait_for_parts(output, 1, process)
        workers[0].cut()
        assert process.wait(900) == 0, log.read_text()
    assert_equal_outputs(undisturbed, output)


def _worker() -> int:
    """The actor's process: a descendant of this one, by the name that Ray gives it."""
    (found,) = (pid for pid, name in family().items() if name.startswith("ray::MapWorker"))
    return found
