from pathlib import Path
from typing import Any

import optuna
import pytest

from nodes.command import UsageError
from sweeps.results import TrialRecord
from sweeps.space import Choice
from sweeps.study import StudyWriter, distributions


def test_a_study_of_the_same_name_is_gone_on_with_if_its_choices_are_the_same(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    same = distributions({"patch_size": Choice((2, None))})
    point = {"patch_size": None, "seed": 0}
    ended: dict[str, Any] = {"status": "failed", "error": "boom", "history": [], "checkpoint": None}
    trial = TrialRecord(name="a trial", trial_id="1", point=point, **ended)
    for _ in range(2):
        StudyWriter(url, "patch_size/monday", same).add([trial])
    (written,) = optuna.load_study(storage=url, study_name="patch_size/monday").trials
    assert written.params == point
    with pytest.raises(UsageError, match=r"study patch_size/monday in .* with other choices of patch_size"):
        StudyWriter(url, "patch_size/monday", distributions({"patch_size": Choice((8, 16))}))
