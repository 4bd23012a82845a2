"""Whole sweeps on real Ray, as users run them."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from support import ROOT, TINY, run

from core import checkpoint
from sweeps.results import levels, load

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can use the GPU")
def test_a_trial_whose_gpu_pytorch_cannot_use_fails_and_does_not_train_on_the_cpu(tmp_path: Path) -> None:
    words = (*TINY, "--vary", "patch_size=8", "--budget", "1e9")
    done = run(tmp_path, *words, env={"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'})
    assert done.returncode == 1, done.stderr
    assert "has given this trial GPU 0" in done.stdout
    assert "pass --gpus-per-trial 0" in done.stdout


def test_a_trial_without_a_gpu_sees_none() -> None:
    """Else trials with `--gpus-per-trial 0` would all train on the first."""
    script = """
        import os, ray
        from sweeps import cluster
        cluster.connect(None)
        seen = ray.remote(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        print([ray.get(seen.options(num_gpus=gpus).remote()) for gpus in (0, 1)])
    """
    variables = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}
    words = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.check_output(words, env=variables, cwd=ROOT, text=True).splitlines()[-1] == "['', '0']"


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
