"""What watches a sweep from the driver: keeps the frames and the study up to date, and shows the live table."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray import tune
from ray.tune.experiment import Trial

from sweeps.progress import ProgressView
from sweeps.results import TrialRecord
from sweeps.storage import Patience, check_there, patiently
from sweeps.trial import HISTORY_FILE, trial_name

_SECONDS_BETWEEN_WRITES = 5.0


class Observer(tune.Callback):
    """Tune's callback of a stage. `on_records` receives the record of every trial whenever some have changed.

    Tune pickles its callbacks into the experiment's folder and unpickles them when it restores; what it gets back there
    is the observer of the process that restores.
    """

    current: "Observer | None" = None

    def __init__(self, view: ProgressView, on_records: Callable[[list[TrialRecord]], None], stage_folder: str) -> None:
        self._view, self._on_records, self._stage_folder = view, on_records, stage_folder
        self._ended: dict[str, TrialRecord] = {}
        self._trials: list[Trial] = []
        # Tune calls a trial that Ctrl-C cut short finished too, but only after the last step.
        self._finished: set[str] | None = None
        self._tried_at = 0.0
        self._patience = Patience()
        self._changed = False
        Observer.current = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _current_observer, ()

    @property
    def records(self) -> list[TrialRecord]:
        """All trials of the stage as they now stand.

        Raises:
            OSError: storage fails.
        """
        return [self._record(trial) for trial in self._trials]

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._trials = trials
        self._finished = {trial.trial_id for trial in trials if trial.is_finished()}
        self._view.show(trials)
        if self._changed and time.monotonic() - self._tried_at > _SECONDS_BETWEEN_WRITES:
            self._write()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._changed = True
        # A trial that gets on may lose its machine again and again; only failures without an epoch between them count.
        if result.get("epoch", 0) > (trial.last_result or {}).get("epoch", 0):
            trial.run_metadata.num_failures = 0

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._changed = True

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._changed = True

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._trials = trials
        if self._finished is None:  # restored, with nothing left to do
            self._finished = {trial.trial_id for trial in trials if trial.is_finished()}

    def settle(self) -> list[TrialRecord]:
        """The records after the end, when they have been handed on; waits for storage that fails.

        Raises:
            StorageError: it has failed for too long.
        """

        def hand_on() -> list[TrialRecord]:
            records = self.records
            self._on_records(records)
            return records

        return patiently(hand_on)

    def _write(self) -> None:
        self._tried_at = time.monotonic()
        try:
            self._on_records(self.records)
        except OSError as error:
            self._patience.failed(error)  # the trials go on; the frames can wait
        else:
            self._patience.succeeded()
            self._changed = False

    def _record(self, trial: Trial) -> TrialRecord:
        if trial.trial_id in self._ended:
            return self._ended[trial.trial_id]
        has_finished = trial.trial_id in (self._finished or ())
        record = _record_of(trial, self._stage_folder, has_finished)
        could_be_read = record.history or record.checkpoint is None
        if has_finished and could_be_read:
            self._ended[trial.trial_id] = record
        return record


def _current_observer() -> Observer:
    if Observer.current is None:
        raise RuntimeError("an experiment of this project can only be restored by sweeps.runner")
    return Observer.current


def _record_of(trial: Trial, stage_folder: str, has_finished: bool) -> TrialRecord:
    checkpoint = trial.checkpoint
    history: list[dict[str, Any]] = []
    relative = None
    if checkpoint is not None:
        history = _read_history(checkpoint, stage_folder)
        # Tune may have changed the folder's name to make it unique.
        folder = Path(checkpoint.path)
        relative = f"{Path(stage_folder).name}/{folder.parent.name}/{folder.name}"
    error = trial.last_result.get("error") if trial.last_result else None
    if trial.status == Trial.ERROR:
        error = error or _last_line(trial.get_error())
    if error:
        status = "failed"
    elif not has_finished:
        status = "unfinished"
    else:
        status = "completed" if history and history[-1]["progress"] == 1 else "stopped"
    return TrialRecord(
        name=trial_name(trial.config),
        trial_id=trial.trial_id,
        point=dict(trial.config),
        status=status,
        error=error,
        history=history,
        checkpoint=relative,
    )


def _read_history(checkpoint: tune.Checkpoint, stage_folder: str) -> list[dict[str, Any]]:
    filesystem: pyarrow.fs.FileSystem = checkpoint.filesystem
    try:
        with filesystem.open_input_stream(f"{checkpoint.path}/{HISTORY_FILE}") as stream:
            return json.loads(stream.read())
    except (FileNotFoundError, ValueError):
        check_there(stage_folder)
        return []


def _last_line(error: BaseException | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "the trial's process died"
