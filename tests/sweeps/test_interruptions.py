"""Sweeps that are interrupted, by Ctrl-C, `kill -9` or a worker's death, and resumed: no number changes."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from support import FEWER, LONGER, TINY, descendants_named, kill, reproducible, run, start, wait_for_checkpoints

from benchmarks.node_deaths import check_same
from sweeps.results import TRIALS_FILE, SweepResults, load


def saved(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Newest whole checkpoint of every trial: its epoch and attempt."""
    epochs: dict[str, int] = {}
    attempts: dict[str, int] = {}
    for file in sorted(folder.glob("trials/*/checkpoint_*/history.json")):
        try:
            last = json.loads(file.read_text())[-1]
        except ValueError:
            continue  # the driver died while this one was copied
        trial = re.sub(r"(,seed=\d+),.*", r"\1", file.parts[-3])
        if last["epoch"] >= epochs.get(trial, 0):
            epochs[trial], attempts[trial] = last["epoch"], last["attempt"]
    return epochs, attempts


def kill_and_resume(folder: Path, kills: int, *flags: str) -> Path:
    """Run a sweep, killing its driver at random moments; at the end no trial has begun again what was on disk then."""
    moments = random.Random(0)
    results = folder / "results" / "patch_size" / "killed"
    process = start(folder, *flags, "--name", "killed")
    snapshots = []
    for number in range(kills):
        wait_for_checkpoints(results, 1 + number)
        time.sleep(moments.uniform(0, 3))
        assert process.poll() is None, (
            "the sweep ended before it could be killed: " + (folder / "output.txt").read_text()
        )
        kill(process)
        snapshots.append(saved(results))
        process = start(folder, "--resume", "latest")
    assert process.wait(280) == 0, (folder / "output.txt").read_text()
    epochs = load(results).epochs
    for snapshot in snapshots:
        check_kept(*snapshot, epochs)
    return results


def check_kept(saved_epochs: dict[str, int], attempts: dict[str, int], epochs: pd.DataFrame) -> None:
    """No trial has trained again what it had saved."""
    for trial, epoch in saved_epochs.items():
        kept = epochs[(epochs["trial"] == trial) & (epochs["epoch"] <= epoch)]
        assert len(kept) == epoch
        assert kept["attempt"].max() == attempts[trial], f"{trial} was begun again though epoch {epoch} was saved"


def check_same_after_interruption(whole: SweepResults, interrupted: SweepResults) -> None:
    check_same(whole, interrupted)
    assert interrupted.epochs["attempt"].max() > 1


@pytest.mark.timeout(1200)
def test_ctrl_c_and_kill_9_of_the_driver_change_no_number_of_a_grid(tmp_path: Path) -> None:
    assert run(tmp_path, *FEWER, "--name", "whole").returncode == 0
    folder = tmp_path / "results" / "patch_size" / "stopped"
    process = start(tmp_path, *FEWER, "--name", "stopped")
    wait_for_checkpoints(folder, 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    output = (tmp_path / "output.txt").read_text()
    assert "python sweeps/patch_size.py --resume results/patch_size/stopped" in output
    assert "Traceback" not in output
    partial = load(folder)
    assert partial.sweep["status"] == "interrupted"
    assert "unfinished" in set(partial.trials["status"])
    after_ctrl_c = saved(folder)

    process = start(tmp_path, "--resume", "results/patch_size/stopped")
    wait_for_checkpoints(folder, 3)
    assert process.poll() is None, (tmp_path / "output.txt").read_text()
    kill(process)
    after_kill = saved(folder)

    resumed = run(tmp_path, "--resume", "latest")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    results = load(folder)
    check_kept(*after_ctrl_c, results.epochs)
    check_kept(*after_kill, results.epochs)
    check_same_after_interruption(load(folder.with_name("whole")), results)
    assert len(results.trials) == 4 and (results.trials["status"] == "completed").all()


def test_a_run_that_was_stopped_is_finished_by_what_had_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')  # one trial after the other
    flags = (*TINY, "--vary", "patch_size=16,4", "--epochs", "3", "--seeds", "1", "--name", "stopped")
    process = start(tmp_path, *flags)
    folder = tmp_path / "results" / "patch_size" / "stopped"
    while not (folder / TRIALS_FILE).exists() or "completed" not in set(load(folder).trials["status"]):
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "--resume results/patch_size/stopped --finish" in (tmp_path / "output.txt").read_text()

    done = run(tmp_path, "--resume", "latest", "--finish")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Of 4 no trial was completed." in done.stdout
    results = load(folder)
    assert results.sweep["status"] == "finished early"
    assert "; ended before all were trained. Cost: " in (folder / "report.md").read_text()
    ended, other = (results.trials.set_index("config/patch_size").loc[size] for size in (16, 4))
    assert ended["status"] == "completed" and 0 <= ended["test_accuracy"] <= 1
    assert other["status"] == "unfinished" and pd.isna(other["test_accuracy"])
    assert (folder / "best").is_dir()

    resumed = run(tmp_path, "--resume", "latest")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole = load(folder)
    assert whole.sweep["status"] == "completed" and (whole.trials["status"] == "completed").all()
    assert whole.trials.set_index("config/patch_size").loc[16, "test_accuracy"] == ended["test_accuracy"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_of_the_driver_five_times_changes_no_number_of_a_grid(tmp_path: Path) -> None:
    assert run(tmp_path, *LONGER, "--name", "whole").returncode == 0
    killed = kill_and_resume(tmp_path, 5, *LONGER)
    check_same_after_interruption(load(killed.with_name("whole")), load(killed))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_loses_and_doubles_no_trial_of_a_search(tmp_path: Path) -> None:
    flags = ("--search", "optuna", "--scheduler", "asha", "--num-samples", "16", "--seeds", "1")
    results = load(kill_and_resume(tmp_path, 5, *TINY, "--budget", "3e10", *flags))
    assert len(results.trials) == 16
    assert results.trials["trial_id"].is_unique
    assert results.trials["config/learning_rate"].is_unique
    assert set(results.trials["status"]) <= {"completed", "stopped"}
    assert not results.epochs.duplicated(["trial", "epoch"]).any()


@pytest.mark.slow
def test_a_torn_snapshot_costs_a_grid_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "--smoke", "--dataset", "shapes", "--name", "torn").returncode == 0
    folder = tmp_path / "results" / "patch_size" / "torn"
    before = load(folder)
    (snapshot,) = folder.glob("trials/experiment_state-*.json")
    snapshot.write_bytes(snapshot.read_bytes()[:1000])
    done = run(tmp_path, "--resume", "latest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_frame_equal(reproducible(before.trials), reproducible(load(folder).trials))


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_its_trial_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, *LONGER, "--name", "shot")
    folder = tmp_path / "results" / "patch_size" / "shot"
    wait_for_checkpoints(folder, 1)
    workers = descendants_named(process.pid, "ray::ImplicitFunc")
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(240) == 0, (tmp_path / "output.txt").read_text()
    results = load(folder)
    assert len(results.trials) == 8 and (results.trials["status"] == "completed").all()
