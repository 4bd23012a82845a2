"""Whole sweeps on real Ray, as users run them."""

import json
import os
import random
import re
import signal
import sqlite3
import time
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from support import FEWER, LONGER, TINY, descendants_named, kill, reproducible, run, start, wait_for_checkpoints

from benchmarks.process_memory import environment
from core import checkpoint
from nodes.joining import KEEPING_MEMORY
from sweeps.results import SweepResults, levels, load

FAULTY = Path(__file__).with_name("faulty_sweep.py")


def test_a_sweep_leaves_all_that_was_promised(tmp_path: Path) -> None:
    done = run(tmp_path, "--smoke", "--dataset", "shapes", "--seeds", "2", "--name", "first")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "results" / "patch_size" / "first"
    results = load(folder.parent / "latest")
    assert len(results.trials) == 8
    assert (results.trials["status"] == "completed").all()
    assert results.trials["test_accuracy"].notna().all()
    assert results.epochs.groupby("trial")["epoch"].max().eq(2).all()
    assert {p.name for p in folder.iterdir()} == {
        *("trials.parquet", "epochs.parquet", "report.html", "report.md", "figures", "best", "sweep.json"),
        *("study.db", "trials"),
    }
    for relative in results.trials["checkpoint"]:
        checkpoint.load(folder / relative)
    best = checkpoint.load(folder / "best")
    winner = levels(results.trials, "patch_size")[0].value
    of_winner = results.trials[results.trials["config/patch_size"] == winner]
    assert best.model_config.patch_size == winner
    assert best.metrics["val_accuracy"] == of_winner["val_accuracy"].max()
    assert "test_accuracy" in best.metrics
    assert not (folder / "best" / "train_state.pt").exists()
    assert list(folder.glob("trials/*/events.out.tfevents*")), "TensorBoard files"
    record = json.loads((folder / "sweep.json").read_text())
    assert record["status"] == "completed"
    assert record["machine"]["versions"]["ray"]
    with sqlite3.connect(folder / "study.db") as study:
        assert study.execute("select count(*) from trials where state = 'COMPLETE'").fetchone() == (8,)

    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "serve the winner: serve run serve.config classifier=results/patch_size/first/best"
    assert lines[-2].startswith("results: results/patch_size/first ")
    assert "Patch size" in lines[-3]
    assert done.stderr == ""
    assert not re.search(r"ray\.|WARNING|\(pid=", done.stdout)

    again = run(tmp_path, "--smoke", "--dataset", "shapes", "--name", "first")
    assert again.returncode == 2
    assert "exists; go on with it by --resume results/patch_size/first" in again.stderr


def test_failing_trials_are_rows_and_the_others_finish(tmp_path: Path) -> None:
    done = run(tmp_path, *TINY, program=FAULTY)
    assert done.returncode == 1, done.stdout + done.stderr
    trials = load(tmp_path / "results" / "faulty" / "latest").trials
    assert len(trials) == 8
    by_setting = trials.set_index(
        [f"config/{name}" for name in ("learning_rate", "mlp_ratio", "patch_size")]
    ).sort_index()
    good = by_setting.loc[(1e-3, 2.0, 8)]
    assert good["status"] == "completed" and good["test_accuracy"] > 0
    assert (by_setting["status"] == "failed").sum() == 7
    assert "the loss is" in by_setting.loc[(1e30, 2.0, 8), "error"]
    assert "patch_size=5 does not divide image_size=32" in by_setting.loc[(1e-3, 2.0, 5), "error"]
    assert re.search("alloc|memory", by_setting.loc[(1e-3, 1e10, 8), "error"])
    assert "7 of 8 trials failed:" in done.stdout
    assert "serve the winner" in done.stdout


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


def check_same(whole: SweepResults, interrupted: SweepResults) -> None:
    assert_frame_equal(reproducible(whole.trials), reproducible(interrupted.trials))
    assert_frame_equal(reproducible(whole.epochs), reproducible(interrupted.epochs))
    assert interrupted.epochs["attempt"].max() > 1


@pytest.mark.timeout(1200)
def test_ctrl_c_and_kill_9_of_the_driver_change_no_number_of_a_grid(tmp_path: Path) -> None:
    assert run(tmp_path, *FEWER, "--name", "whole").returncode == 0
    folder = tmp_path / "results" / "patch_size" / "stopped"
    process = start(tmp_path, *FEWER, "--name", "stopped")
    wait_for_checkpoints(folder, 2)
    for worker in descendants_named(process.pid, "ray::ImplicitFunc"):
        assert KEEPING_MEMORY.items() <= environment(worker).items()
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
    check_same(load(folder.with_name("whole")), results)
    assert len(results.trials) == 4 and (results.trials["status"] == "completed").all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_of_the_driver_five_times_changes_no_number_of_a_grid(tmp_path: Path) -> None:
    assert run(tmp_path, *LONGER, "--name", "whole").returncode == 0
    killed = kill_and_resume(tmp_path, 5, *LONGER)
    check_same(load(killed.with_name("whole")), load(killed))


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


def test_optuna_with_asha_confirms_its_finalists(tmp_path: Path) -> None:
    flags = ("--search", "optuna", "--scheduler", "asha", "--num-samples", "10", "--seeds", "2", "--name", "searched")
    done = run(tmp_path, *TINY, "--vary", "patch_size=8,16", "--budget", "1e10", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    results = load(tmp_path / "results" / "patch_size" / "searched")
    searched = results.trials[results.trials["checkpoint"].str.startswith("trials/")]
    confirmed = results.trials[results.trials["checkpoint"].str.startswith("confirm/")]
    assert len(searched) == 10 and (searched["seed"] == 0).all()
    assert len(confirmed) and (confirmed["seed"] == 1).all()
    assert set(results.trials["status"]) <= {"completed", "stopped"}
    assert results.trials["config/learning_rate"].nunique() == 10


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
