"""What stops a sweep before it starts: one sentence, exit code 2, and nothing left behind."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import LONGER, TINY, run, start, wait_for_checkpoints

from sweeps.flags import Flags
from sweeps.patch_size import SWEEP
from sweeps.runner import main


def refused(capsys: pytest.CaptureFixture[str], **flags: Any) -> str:
    """The sentence that a sweep with these flags ends with."""
    assert main(SWEEP, Flags(**{"dataset": "shapes", "smoke": True, **flags})) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
    return output.err


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_missing_data_names_the_folder_and_both_ways_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(capsys, dataset="folder", data_root="empty/nothing")
    assert "empty/nothing is not a folder" in message
    # A proxy that refuses stands for a machine without network.
    with pytest.MonkeyPatch.context() as offline:
        offline.setenv("https_proxy", "http://127.0.0.1:9")
        message = refused(capsys, dataset="cifar10", data_root="empty")
    assert "cifar10 was not found in empty" in message
    assert "--data-root DIR" in message and "--dataset shapes" in message
    assert not list(Path("results/patch_size").iterdir())


def test_unreadable_parquet_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        Path(f"{split}-0.parquet").write_bytes(b"not parquet")
    assert "train-0.parquet cannot be read as parquet" in refused(capsys, dataset="cifar10", data_root=".")


def test_an_address_where_no_cluster_is_or_of_ray_client_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the Ray cluster at 127.0.0.1:9 cannot be joined" in refused(capsys, address="127.0.0.1:9")
    assert "give HOST:PORT of the cluster's head" in refused(capsys, address="ray://127.0.0.1:10001")


def test_databases_that_cannot_be_opened_are_named_before_anything_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "study database sqlite:////nowhere/study.db cannot" in refused(
        capsys, study_url="sqlite:////nowhere/study.db"
    )
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    assert "--mlflow-url needs MLflow: pip install" in refused(capsys, mlflow_url="http://127.0.0.1:9")
    assert not list(Path("results/patch_size").iterdir())


def test_a_storage_path_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    message = refused(capsys, storage="file")
    assert "results cannot be written to file/patch_size/" in message and "--storage" in message


def test_resuming_what_is_not_a_sweep_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is nothing to resume: results/patch_size/latest" in refused(capsys, resume="latest")
    assert "is not the folder of a sweep: it has no sweep.json" in refused(capsys, resume=str(tmp_path))
    (tmp_path / "sweep.json").write_text("{")
    assert "sweep.json is damaged" in refused(capsys, resume=str(tmp_path))
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": "faulty", "flags": {}}))
    assert "is a run of sweeps/faulty.py, not of patch_size.py" in refused(capsys, resume=str(tmp_path))
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": "patch_size", "flags": {"bogus": 1, "set": []}}))
    assert "sweep.json is damaged" in refused(capsys, resume=str(tmp_path))


def test_resuming_from_a_uri_that_has_no_such_run_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/bucket/patch_size/mine"
    assert f"there is nothing to resume: {uri}/sweep.json cannot be read: " in refused(capsys, resume=uri)
    assert "there is nothing to resume: nosuch://bucket/run" in refused(capsys, resume="nosuch://bucket/run")
    assert not list(Path("results/patch_size").iterdir())
    here = Path("results/patch_size/mine")
    here.mkdir()
    flags = {**dataclasses.asdict(Flags()), "storage": "s3://other"}
    (here / "sweep.json").write_text(json.dumps({"sweep": "patch_size", "flags": flags}))
    message = refused(capsys, resume=uri)
    assert f"is of another run than {uri}: its trials are at s3://other/patch_size/mine; move it away" in message


def test_a_uri_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, storage="file:///proc/nowhere/")
    assert "results cannot be written to file:///proc/nowhere/patch_size/" in message and "--storage" in message
    assert not list(Path("results/patch_size").iterdir())


def test_a_taken_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results/patch_size/mine").mkdir(parents=True)
    message = refused(capsys, name="mine")
    assert "results/patch_size/mine exists" in message and "--resume results/patch_size/mine" in message


def test_a_name_taken_under_a_uri_is_refused_and_its_record_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    taken = tmp_path / "bucket" / "patch_size" / "mine" / "sweep.json"
    taken.parent.mkdir(parents=True)
    taken.write_text("of another run, started on another machine")
    uri = f"file://{tmp_path}/bucket"
    message = refused(capsys, name="mine", storage=uri)
    assert f"{uri}/patch_size/mine exists; go on with it by --resume {uri}/patch_size/mine" in message
    assert taken.read_text() == "of another run, started on another machine"
    assert not list(Path("results/patch_size").iterdir())


def test_a_run_that_cannot_start_takes_its_record_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    there = tmp_path / "bucket" / "patch_size" / "mine"
    there.mkdir(parents=True)
    message = refused(capsys, name="mine", storage=f"file://{tmp_path}/bucket", address="127.0.0.1:9")
    assert "the Ray cluster at 127.0.0.1:9 cannot be joined" in message  # which is tried after the record is shared
    assert not list(there.iterdir())


def test_settings_that_no_trial_can_have_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no trial can be trained: num_heads=7 does not divide" in refused(capsys, set=("num_heads=7",), smoke=False)
    assert "unknown; there are:" in refused(capsys, set=("breadth=7",))


def test_a_disk_too_small_for_the_checkpoints_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = dataclasses.make_dataclass("Usage", ["free"])(1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "make room or name another --storage" in refused(capsys)


def test_a_cluster_that_is_too_small_is_refused_at_once(tmp_path: Path) -> None:
    too_many = run(tmp_path, *TINY, "--cpus-per-trial", "64")
    assert too_many.returncode == 2
    assert "a trial asks for 64 CPUs and 0 GPUs, and no node of the cluster has them" in too_many.stderr
    no_gpu = run(tmp_path, *TINY, "--gpus-per-trial", "1")
    assert no_gpu.returncode == 2
    assert "1 GPUs" in no_gpu.stderr
    assert not list((tmp_path / "results" / "patch_size").iterdir())


@pytest.mark.slow
def test_a_disk_that_fills_up_on_the_way_ends_tidily(small_disk: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *LONGER, "--storage", str(small_disk), "--name", "full")
    folder = small_disk / "patch_size" / "full"
    wait_for_checkpoints(folder, 1)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    assert process.wait(200) == 1
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output, output
    assert "No space left" in output or "the disk is full" in output
    ballast.unlink()
    resumed = run(tmp_path, "--resume", str(folder))
    assert "Traceback" not in resumed.stdout + resumed.stderr
