"""The calibration sweep on real Ray, with the demo weights and a few scenes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pandas as pd
import pytest
from support import start

from core.segment.calibration import Calibration
from core.segment.presets import DEMO_CALIBRATION
from sweeps import segmentation_threshold

ROOT = Path(__file__).parent.parent.parent


PROGRAM = ROOT / "sweeps/segmentation_threshold.py"


def sweep(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def test_models_of_ones_own_do_not_start_from_the_demo_models_calibration() -> None:
    assert segmentation_threshold.Settings().load_start() == Calibration.load(DEMO_CALIBRATION)
    assert segmentation_threshold.Settings(clipseg="models/clipseg", sam2="models/sam2").load_start() == Calibration()
    assert segmentation_threshold.Settings(preset="tiny").load_start() == Calibration()


def test_trials_find_what_a_relative_path_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "clipseg").mkdir()
    given = {"labels": Path("labels.json"), "images": Path("photos"), "clipseg": "clipseg", "sam2": "facebook/sam2"}
    found = segmentation_threshold.Settings(**given)
    assert (found.labels, found.images) == (tmp_path / "labels.json", tmp_path / "photos")
    assert (found.clipseg, found.sam2) == (str(tmp_path / "clipseg"), "facebook/sam2")


def test_a_calibration_is_written_and_a_run_can_be_taken_up_again(tmp_path: Path) -> None:
    done = sweep("--scenes", "8", "--num-samples", "2", "--name", "a", "--output", tmp_path / "c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results/segmentation_threshold/a"
    calibration = Calibration.load(folder / "calibration.json")
    assert Calibration.load(tmp_path / "c.json") == calibration
    assert calibration.rivals == Calibration.load(DEMO_CALIBRATION).rivals
    trials = pd.read_parquet(folder / "trials.parquet")
    assert len(trials) == 2
    assert trials["objective"].between(0.3, 1).all()
    record = json.loads((folder / "record.json").read_text())
    assert set(record["scores"]) == {"start", "tuned"}
    assert "2/2 tried" in done.stdout

    again = sweep("--resume", folder, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "trials.parquet"), trials)

    assert "exists" in refused(tmp_path, "--name", "a")


@pytest.mark.slow
def test_ctrl_c_writes_no_calibration_and_the_run_goes_on(tmp_path: Path) -> None:
    words = ("--scenes", "4", "--num-samples", "4", "--name", "a", "--output", "c.json")
    process = start(tmp_path, *words, program=PROGRAM)
    deadline = time.monotonic() + 300
    while "1/4 tried" not in (tmp_path / "output.txt").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    output = (tmp_path / "output.txt").read_text()
    assert "python sweeps/segmentation_threshold.py --resume results/segmentation_threshold/a" in output
    assert "Traceback" not in output
    folder = tmp_path / "results/segmentation_threshold/a"
    assert not (tmp_path / "c.json").exists() and not (folder / "calibration.json").exists()

    resumed = sweep("--resume", folder, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert len(pd.read_parquet(folder / "trials.parquet")) == 4
    assert Calibration.load(tmp_path / "c.json") == Calibration.load(folder / "calibration.json")


def test_a_trial_that_fits_on_no_node_is_refused(tmp_path: Path) -> None:
    done = sweep("--scenes", "4", "--cpus-per-trial", "64", cwd=tmp_path)
    assert done.returncode == 2
    assert "a trial asks for 64 CPUs and 0 GPUs, and no node of the cluster has them" in done.stderr
    assert not (tmp_path / "results").exists()


def refused(folder: Path, *words: str) -> str:
    """The sentence that the program's own `main` ends with, here rather than in a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("sys.argv", ["segmentation_threshold.py", *words])
        with redirect_stderr(io.StringIO()) as told:
            code = segmentation_threshold.main()
    assert code == 2
    return told.getvalue()


@pytest.mark.parametrize(
    "words, problem",
    [
        (("--preset", "huge"), "demo, tiny"),
        (("--scenes", "1"), "at least 4"),
        (("--labels", "nothing.json"), "nothing.json is no file"),
        (("--resume", "nowhere"), "nowhere"),
        (("--clipseg", "nowhere"), "nowhere"),
    ],
)
def test_bad_words_are_refused_with_a_sentence(tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    told = refused(tmp_path, *words)
    assert problem in told and told.startswith("error: ")
    assert not (tmp_path / "results").exists()


def test_the_program_itself_ends_with_a_sentence(tmp_path: Path) -> None:
    done = sweep("--preset", "huge", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --preset must be one of") and done.stderr.count("\n") == 1
