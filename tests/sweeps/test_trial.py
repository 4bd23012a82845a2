"""What a trial leaves behind in the process that runs the next one."""

import os
import threading

import pytest
import torch

from benchmarks.process_memory import usage_of
from core.data import Dataset
from sweeps import trial


def test_what_a_trials_thread_has_freed_goes_back_to_the_machine(
    shapes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, held = [], []

    def work(*_: object) -> None:
        blocks = [bytearray(50_000) for _ in range(4000)]
        kept.append(blocks[-1])  # what lies behind it the C library does not give back of its own accord
        held.append(usage_of(os.getpid()).private)

    monkeypatch.setattr(trial, "_train", work)
    recipe = trial.Recipe(base={}, factor="row", bundles={})
    settings = trial.TrialSettings(
        recipe=recipe, folder="", start_folder="nowhere", num_threads=torch.get_num_threads()
    )
    thread = threading.Thread(target=trial.run_trial, args=({}, shapes, settings))
    thread.start()
    thread.join()
    assert held[0] - usage_of(os.getpid()).private > 150
