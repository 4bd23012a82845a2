"""What a trial leaves behind in the process that runs the next one, and what it tells when it goes on."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from ray import tune

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


def test_an_epoch_that_tune_has_no_record_of_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for epochs in (1, 2):
        folders.append(tmp_path / str(epochs))
        folders[-1].mkdir()
        (folders[-1] / trial.HISTORY_FILE).write_text(json.dumps([{"epoch": n + 1} for n in range(epochs)]))
    recorded = [tune.Checkpoint.from_directory(folder) for folder in (*folders, tmp_path / "gone")]
    told = []
    for checkpoint in (None, *recorded):
        monkeypatch.setattr(trial.tune, "get_checkpoint", lambda one=checkpoint: one)
        told.append(trial._missed(folders[1]))
    assert told == [{"epoch": 2}, {"epoch": 2}, None, {"epoch": 2}]
