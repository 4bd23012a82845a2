"""A node dies in the middle of a sweep: every trial finishes, from its last epoch, with the same numbers."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.node_deaths import Settings, check_resumed, run
from sweeps.results import SweepResults


def test_a_node_killed_once_changes_no_number(tmp_path: Path) -> None:
    _, (kill,) = run(Settings(kills=1, undisturbed=1, budget=1e10, seeds=1), tmp_path)
    assert kill.seconds > kill.moment_s


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nodes_killed_at_ten_random_moments_change_no_number(tmp_path: Path) -> None:
    _, kills = run(Settings(), tmp_path)
    assert len(kills) == 10
    assert sum(kill.interrupted > 0 for kill in kills) >= 5, "most kills must strike a trial at work"


def test_a_trial_begun_again_from_nothing_would_be_noticed(tmp_path: Path) -> None:
    def results(attempts: list[int]) -> SweepResults:
        epochs = pd.DataFrame({"trial": "a", "epoch": range(1, len(attempts) + 1), "attempt": attempts})
        return SweepResults(folder=tmp_path, trials=pd.DataFrame(), epochs=epochs, sweep={})

    check_resumed(results([1, 1, 2]), {"a": 2})
    with pytest.raises(AssertionError, match="began again"):
        check_resumed(results([1, 2, 2]), {"a": 2})
    with pytest.raises(AssertionError, match="began again"):
        check_resumed(results([2, 2, 2]), {"a": 1})
