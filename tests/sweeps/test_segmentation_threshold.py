"""The calibration sweep on real Ray, with the demo weights and a few scenes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from core.segment.calibration import Calibration
from core.segment.pipeline import DEMO_CALIBRATION

ROOT = Path(__file__).parent.parent.parent


def sweep(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "sweeps/segmentation_threshold.py"), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


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

    taken = sweep("--name", "a", cwd=tmp_path)
    assert taken.returncode == 2
    assert "exists" in taken.stderr


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
    refused = sweep(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert problem in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "results").exists()
