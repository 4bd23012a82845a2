"""How many seconds does Ray Tune add to a trial, with what our runner does about it?

    python -m benchmarks.sweep_overhead
    python -m benchmarks.sweep_overhead --rounds 1 --trials 60 --few 10 --output results/benchmarks/sweep_overhead.json

The trial is trivial: it reports one number once. So the whole time is overhead. Compared, round by round:

- runner: `sweeps.runner.Runner`, the real one, with that trial in the place of `sweeps.trial.run_trial`. It keeps
  actors for the next trial (`reuse_actors`), takes fewer snapshots the more trials there are, loads PyTorch in its
  workers, and keeps its logs, live view, frames and Optuna study as always.
- runner, few: the same with a few trials. From the two follow the start (workers, PyTorch) and the cost of one more.
- defaults: `tune.Tuner` as Tune makes it, with its default loggers; few trials, as each starts a process of its own.
- optuna: `study.optimize` in one process, in memory; and once more with its study in SQLite, as a sweep that can be
  resumed needs it.

Ray itself is started beforehand, afresh for each contender and round, and not timed. Contenders take turns within a
round, so that other work on the machine strikes all alike. The verdicts compare medians.
"""

import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import ray
import tyro
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from rich.console import Console

from benchmarks.record import Verdict, at_most, conclude, spread
from nodes import command
from sweeps import cluster, run_folder, runner
from sweeps.flags import Flags
from sweeps.question import Sweep
from sweeps.space import Choice
from sweeps.trial import TrialSettings

_TARGET_SECONDS = 0.1
_TARGET_GAIN = 10.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    rounds: int = 3
    """How many times all contenders take their turn."""
    trials: int = 300
    """Trials of the runner and of Optuna."""
    few: int = 30
    """Trials of Tune's defaults, which are slow, and of the runner beside them."""
    output: Path | None = None
    """Write a JSON record of all rounds here."""


def score(x: int) -> float:
    """The objective of every contender."""
    return -float(x)


def trivial_trial(point: dict[str, Any], data: object, settings: TrialSettings) -> None:
    """Stands in for `sweeps.trial.run_trial`."""
    tune.report({"val_accuracy": score(point["learning_rate"]), "epoch": 1})


def default_trial(point: dict[str, Any]) -> None:
    """The same for Tune without our runner."""
    tune.report({"val_accuracy": score(point["learning_rate"]), "epoch": 1})


def time_runner(num_trials: int, folder: Path) -> float:
    """Seconds that the runner's first stage takes, from its `Tuner` to its last frame."""
    # The setting that varies must be one of a training; 1, 2, ... need not be sensible ones.
    sweep = Sweep(
        name="overhead",
        question="What does Ray Tune add to a trial?",
        description="",
        factor="learning_rate",
        grid={"learning_rate": Choice(tuple(range(1, num_trials + 1)))},
        answer=lambda levels: "",
        budget=1e9,
        seeds=1,
    )
    flags = Flags(dataset="shapes", address="local", storage=str(folder), gpus_per_trial=0, smoke=True)
    # The live view does its work, but not on the terminal: it would be 300 lines a round.
    unseen = mock.patch.object(command, "OUT", Console(file=io.StringIO()))
    with unseen, mock.patch.object(runner, "run_trial", trivial_trial), _ray_stops_after():
        run = runner.Runner(sweep, run_folder.start(sweep, flags))
        stored = ray.put(run.data)
        started = time.perf_counter()
        records = run.stage(runner.SEARCH_STAGE, run.resolved.points, stored)
        elapsed = time.perf_counter() - started
    errors = [record.error for record in records if record.error]
    if len(records) != num_trials or errors:
        raise RuntimeError(f"{len(records)} of {num_trials} trials ended, {len(errors)} failed: {errors[:1]}")
    return elapsed


def time_tune_defaults(num_trials: int, folder: Path) -> float:
    """Seconds that Tune takes where nobody has set anything."""
    # Ours, from the runner: its snapshot period, and `cluster.connect` switches the default loggers off.
    os.environ.pop("TUNE_GLOBAL_CHECKPOINT_S", None)
    with _ray_stops_after():
        cluster.connect("local")
        tuner = tune.Tuner(
            default_trial,
            param_space={"learning_rate": tune.grid_search(list(range(1, num_trials + 1)))},
            run_config=tune.RunConfig(
                name="defaults",
                storage_path=str(folder),
                verbose=0,
                callbacks=[CSVLoggerCallback(), JsonLoggerCallback(), TBXLoggerCallback()],
            ),
        )
        started = time.perf_counter()
        results = tuner.fit()
        elapsed = time.perf_counter() - started
    if len(results) != num_trials or results.num_errors:
        raise RuntimeError(f"{len(results)} of {num_trials} trials ended, {results.num_errors} failed")
    return elapsed


def time_optuna(num_trials: int, storage: str | None) -> float:
    """Seconds of Optuna alone, from making the study to its last trial."""
    started = time.perf_counter()
    study = optuna.create_study(direction="maximize", storage=storage)
    study.optimize(lambda trial: score(trial.suggest_int("learning_rate", 1, num_trials)), n_trials=num_trials)
    return time.perf_counter() - started


@contextmanager
def _ray_stops_after() -> Iterator[None]:
    try:
        yield
    finally:
        ray.shutdown()


def run_round(settings: Settings) -> dict[str, float]:
    """Seconds a trial of every contender, and how the runner's split into start and each further trial."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        many, few = settings.trials, settings.few
        turns: dict[str, Callable[[], float]] = {
            "runner": lambda: time_runner(many, folder / "many") / many,
            "runner, few": lambda: time_runner(few, folder / "few") / few,
            "defaults": lambda: time_tune_defaults(few, folder) / few,
            "optuna": lambda: time_optuna(many, None) / many,
            "optuna, SQLite": lambda: time_optuna(many, f"sqlite:///{folder / 'study.db'}") / many,
        }
        row = {}
        for name, turn in turns.items():
            row[name] = turn()
            print(f"  {name}: {row[name]:.4f} s a trial", flush=True)
    row["runner, one more"] = (row["runner"] * many - row["runner, few"] * few) / (many - few)
    row["runner, start"] = (row["runner, few"] - row["runner, one more"]) * few
    return row


def report(settings: Settings, rounds: Sequence[dict[str, float]]) -> None:
    """Print the table and the verdicts."""
    many, few = settings.trials, settings.few
    counts = {"runner": many, "runner, few": few, "defaults": few, "optuna": many, "optuna, SQLite": many}
    print(f"\nseconds a trial, median (minimum to maximum) of {len(rounds)} rounds:")
    for name in rounds[0]:
        trials = f"{counts[name]} trials" if name in counts else ""
        unit = " s in all" if name == "runner, start" else ""
        print(f"  {name:17} {trials:>10}  {spread([row[name] for row in rounds]).text('.4f')}{unit}")
    added = spread([row["runner"] - row["optuna"] for row in rounds])
    gain = spread([row["defaults"] / row["runner, few"] for row in rounds])
    gain_later = spread([row["defaults"] / row["runner, one more"] for row in rounds])
    print(f"  added by the runner to a trial, against Optuna alone: {added.text('.4f')} s")
    print(f"  defaults / runner at {few} trials, start included: {gain.text('.1f')}")
    print(f"  defaults / one more trial of the runner: {gain_later.text('.1f')}")
    print(
        "what the runner does about it: actors serve the next trial instead of ending, so that workers start and load "
        "PyTorch once;\nsnapshots of the experiment come every max(1, trials / 100) seconds, because each writes all "
        "trials; the frames are\nwritten every five seconds, not at every result; Tune's own tables are off."
    )
    verdicts = [
        at_most(
            claim=f"added to each of {many} trials",
            measured=added.median,
            target=_TARGET_SECONDS,
            unit="s",
        ),
        Verdict(claim="Tune's defaults over one more trial", measured=gain_later.median, target=_TARGET_GAIN, unit="x"),
    ]
    conclude("sweep_overhead", settings, {"rounds": list(rounds)}, verdicts, settings.output)


def main(settings: Settings) -> None:
    """Run all rounds."""
    # By the logger, not by Optuna's own verbosity: the runner does the same, and neither must print 300 lines.
    logging.getLogger("optuna").setLevel(logging.ERROR)
    rounds = []
    for number in range(settings.rounds):
        print(f"round {number + 1}", flush=True)
        rounds.append(run_round(settings))
    report(settings, rounds)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
