"""A node dies in the middle of a sweep: every trial finishes, from its last epoch, with the same numbers."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hosts import ray_cluster
from support import FEWER, ROOT, TINY, descendants_named, run, start, wait_for_checkpoints

from benchmarks.node_deaths import check_resumed, check_same, saved_epochs
from sweeps.results import SweepResults, load
from sweeps.runner import MAX_MACHINE_FAILURES

# Ray's simulated nodes leave sockets open in the process that makes them, so each test has one for them.
ASK_FOR_A_FOLDER = """
import sys
from pathlib import Path
import ray
from benchmarks.node_deaths import cluster_of_nodes
from sweeps.cluster import check_sees
from nodes.command import UsageError
with cluster_of_nodes(1) as cluster:
    ray.init(cluster.address, log_to_driver=False)
    check_sees(Path(sys.argv[1]))
    try:
        check_sees(Path(sys.argv[1], "elsewhere"))
    except UsageError as error:
        print("refused:", error)
    ray.shutdown()
"""


def run_program(*words: str) -> str:
    """What a Python program prints that must end well."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_nodes(record: Path, *flags: str) -> list[dict[str, Any]]:
    """The kills of `benchmarks.node_deaths`, which ends badly if a number differs or a trial began again."""
    run_program("-m", "benchmarks.node_deaths", *flags, "--output", str(record))
    return json.loads(record.read_text())["kills"]


@pytest.mark.timeout(1200)
def test_a_node_killed_once_changes_no_number(tmp_path: Path) -> None:
    flags = ("--kills", "1", "--undisturbed", "1", "--budget", "1e10", "--seeds", "1", "--patch-sizes", "4", "8", "16")
    (kill,) = kill_nodes(tmp_path / "record.json", *flags)
    assert kill["seconds"] > kill["moment_s"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nodes_killed_at_ten_random_moments_change_no_number(tmp_path: Path) -> None:
    kills = kill_nodes(tmp_path / "record.json")
    assert len(kills) == 10
    assert sum(kill["interrupted"] > 0 for kill in kills) >= 5, "most kills must strike a trial at work"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_node_that_the_network_loses_changes_no_number(tmp_path: Path) -> None:
    """It goes on with its trial for a while, and writes to storage, beside the one that takes its place."""
    whole = run(tmp_path, *FEWER, "--name", "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    results = tmp_path / "results" / "patch_size"
    with ray_cluster(2) as (head, workers, address):
        process = start(tmp_path, *FEWER, "--name", "cut", "--address", address, before=head.command())
        wait_for_checkpoints(results / "cut", 1)
        saved = saved_epochs(results / "cut")
        workers[0].cut()
        assert process.wait(900) == 0, (tmp_path / "output.txt").read_text()
    cut = load(results / "cut")
    check_same(load(results / "whole"), cut)
    check_resumed(cut, saved)
    assert (cut.trials["attempt"] > 1).any(), "no trial was lost"


def test_a_trial_begun_again_from_nothing_would_be_noticed(tmp_path: Path) -> None:
    def results(attempts: list[int]) -> SweepResults:
        epochs = pd.DataFrame({"trial": "a", "epoch": range(1, len(attempts) + 1), "attempt": attempts})
        return SweepResults(folder=tmp_path, trials=pd.DataFrame(), epochs=epochs, sweep={})

    check_resumed(results([1, 1, 2]), {"a": 2})
    with pytest.raises(AssertionError, match="began again"):
        check_resumed(results([1, 2, 2]), {"a": 2})
    with pytest.raises(AssertionError, match="began again"):
        check_resumed(results([2, 2, 2]), {"a": 1})


def wait_for_epoch(folder: Path, epoch: int, seconds: float = 600) -> None:
    """Until a checkpoint of that epoch or a later one is in storage."""
    deadline = time.monotonic() + seconds
    while True:
        for file in folder.glob("trials/*/checkpoint_*/history.json"):
            with contextlib.suppress(OSError, ValueError):  # being written, or removed for a newer one
                if len(json.loads(file.read_text())) >= epoch:
                    return
        assert time.monotonic() < deadline, f"epoch {epoch} did not come"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_that_gets_on_may_be_preempted_more_often_than_it_may_fail(tmp_path: Path) -> None:
    process = start(tmp_path, *TINY, "--vary", "patch_size=8", "--seeds", "1", "--budget", "3e10", "--name", "spot")
    folder = tmp_path / "results" / "patch_size" / "spot"
    for number in range(MAX_MACHINE_FAILURES + 2):
        wait_for_epoch(folder, number + 1)
        for worker in descendants_named(process.pid, "ray::ImplicitFunc"):
            os.kill(worker, signal.SIGKILL)
    assert process.wait(300) == 0, (tmp_path / "output.txt").read_text()
    (trial,) = load(folder).trials.to_dict("records")
    assert trial["status"] == "completed"
    assert trial["attempt"] > MAX_MACHINE_FAILURES + 1


def test_a_folder_that_another_node_does_not_see_is_refused(tmp_path: Path) -> None:
    told = run_program("-c", ASK_FOR_A_FOLDER, str(tmp_path))
    assert re.search(r"refused: node \S+ of the cluster does not see \S+/elsewhere; give a --storage that all", told)
