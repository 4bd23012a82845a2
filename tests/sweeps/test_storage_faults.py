"""Storage that fails for a while: the sweep waits for it, and loses nothing."""

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal
from support import TINY, descendants_named, kill, reproducible, run, start, wait_for_checkpoints

from benchmarks.object_store import BUCKET, ObjectStore, object_store
from sweeps import storage
from sweeps.results import SweepResults, load
from sweeps.storage import StorageError, patiently, storage_failure

SMALL = (*TINY, "--vary", "patch_size=4,8", "--budget", "2e10", "--seeds", "1")
OUTAGE_S = 6.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SweepResults:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, *SMALL, "--name", "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    return load(folder / "results" / "patch_size" / "whole")


def check_nothing_was_lost(undisturbed: SweepResults, disturbed: SweepResults) -> None:
    assert (disturbed.trials["status"] == "completed").all()
    assert_frame_equal(reproducible(undisturbed.trials), reproducible(disturbed.trials))
    assert_frame_equal(reproducible(undisturbed.epochs), reproducible(disturbed.epochs))


@pytest.mark.slow
def test_a_folder_that_is_gone_for_a_while_costs_no_epoch(tmp_path: Path, undisturbed: SweepResults) -> None:
    process = start(tmp_path, *SMALL, "--name", "faulty")
    folder = tmp_path / "results" / "patch_size" / "faulty"
    away = tmp_path / "away"
    wait_for_checkpoints(folder, 1)
    folder.rename(away)
    folder.write_text("in the way, so that nobody can make the folder again")
    time.sleep(OUTAGE_S)
    assert process.poll() is None, (tmp_path / "output.txt").read_text()
    folder.unlink()
    away.rename(folder)
    assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()
    disturbed = load(folder)
    check_nothing_was_lost(undisturbed, disturbed)
    assert (disturbed.epochs["attempt"] == 1).all(), "waiting needs no second attempt"


@pytest.mark.slow
def test_a_trial_preempted_while_its_storage_is_unmounted_begins_where_it_was(
    tmp_path: Path, undisturbed: SweepResults
) -> None:
    process = start(tmp_path, *SMALL, "--name", "unmounted")
    folder = tmp_path / "results" / "patch_size" / "unmounted"
    away = tmp_path / "away"
    wait_for_checkpoints(folder, 2)
    folder.rename(away)
    folder.mkdir()  # what is left of a mount point
    workers = descendants_named(process.pid, "ray::ImplicitFunc")
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    time.sleep(OUTAGE_S)
    shutil.rmtree(folder)
    away.rename(folder)
    assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()
    disturbed = load(folder)
    check_nothing_was_lost(undisturbed, disturbed)
    first = disturbed.epochs[disturbed.epochs["attempt"] == 1].groupby("trial")["epoch"].max()
    interrupted = disturbed.trials.loc[disturbed.trials["attempt"] > 1, "trial"]
    assert len(interrupted), "nothing was preempted"
    assert set(interrupted) <= set(first.index), "a trial with a checkpoint began again from nothing"


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_no_epoch(
    tmp_path: Path, small_disk: Path, undisturbed: SweepResults
) -> None:
    process = start(tmp_path, *SMALL, "--name", "full", "--storage", str(small_disk))
    folder = small_disk / "patch_size" / "full"
    wait_for_checkpoints(folder, 1)
    ballast = small_disk / "ballast"
    fill(ballast)
    time.sleep(OUTAGE_S)
    ballast.unlink()
    assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()
    check_nothing_was_lost(undisturbed, load(folder))


@pytest.mark.slow
def test_s3_that_does_not_answer_for_a_while_costs_no_epoch(tmp_path: Path, undisturbed: SweepResults) -> None:
    with object_store() as store:
        process = start(tmp_path, *SMALL, "--name", "remote", "--storage", f"s3://{BUCKET}/sweeps")
        wait_for_checkpoint_on(store, process, tmp_path)
        store.end()
        time.sleep(OUTAGE_S)
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        store.begin()
        assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()
    disturbed = load(tmp_path / "results" / "patch_size" / "remote")
    check_nothing_was_lost(undisturbed, disturbed)
    assert (disturbed.epochs["attempt"] == 1).all(), "waiting needs no second attempt"


@pytest.mark.slow
def test_a_machine_that_is_lost_takes_nothing_along_that_is_on_s3(tmp_path: Path, undisturbed: SweepResults) -> None:
    lost, other = tmp_path / "lost", tmp_path / "other"
    lost.mkdir()
    other.mkdir()
    with object_store() as store:
        process = start(lost, *SMALL, "--name", "remote", "--storage", f"s3://{BUCKET}/sweeps")
        wait_for_checkpoint_on(store, process, lost)
        kill(process)
        shutil.rmtree(lost)
        done = run(other, "--resume", f"s3://{BUCKET}/sweeps/patch_size/remote")
        assert done.returncode == 0, done.stdout + done.stderr
    resumed = load(other / "results" / "patch_size" / "remote")
    check_nothing_was_lost(undisturbed, resumed)
    assert (resumed.epochs["attempt"] > 1).any(), "nothing was resumed"


def wait_for_checkpoint_on(store: ObjectStore, process: subprocess.Popen[str], folder: Path) -> None:
    """Until the sweep that was started in `folder` has kept one."""
    while not any(name.endswith("train_state.pt") for name in store.names("sweeps")):
        assert process.poll() is None, (folder / "output.txt").read_text()
        time.sleep(0.1)


def fill(file: Path) -> None:
    """Grow a file until the disk is full."""
    try:
        with file.open("wb", buffering=0) as output:
            while True:
                output.write(b"0" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC


def failing(times: int, number: int) -> Callable[[], str]:
    """An action that fails some times before it succeeds."""
    failures = iter(range(times))

    def action() -> str:
        if next(failures, None) is not None:
            raise OSError(number, os.strerror(number))
        return "done"

    return action


def test_patience_outlasts_an_outage_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    assert patiently(failing(20, errno.EIO)) == "done"
    assert 60 < clock[0] < 120
    for number, longest in ((errno.EIO, storage.PATIENCE_S), (errno.ENOSPC, storage.FULL_DISK_PATIENCE_S)):
        clock[0] = 0.0
        with pytest.raises(StorageError, match=os.strerror(number)):
            patiently(failing(10_000, number))
        assert longest < clock[0] < longest + 10


def test_the_failure_of_storage_is_found_under_what_wraps_it() -> None:
    def wrapped(error: OSError) -> RuntimeError:
        try:
            try:
                raise error
            except OSError as inner:
                raise ValueError("a library") from inner
        except ValueError as outer:
            wrapper = RuntimeError("Tune")
            wrapper.__cause__ = outer
            return wrapper

    assert storage_failure(wrapped(OSError(errno.ENOSPC, "No space left on device"))) == "the disk is full"
    assert storage_failure(wrapped(StorageError("storage has failed for 600 s"))) == "storage has failed for 600 s"
    assert storage_failure(wrapped(ConnectionError("refused"))) is None
