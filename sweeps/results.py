"""Results as frames: built from Tune's results, kept as parquet, and read back by `load`."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import infer_dtype
from scipy.special import stdtrit

TRIALS_FILE, EPOCHS_FILE, SWEEP_FILE = "trials.parquet", "epochs.parquet", "sweep.json"

# Columns that differ between two runs of the same sweep; all others are reproduced number by number.
RUN_SPECIFIC_COLUMNS = ("wall_s", "cpu_s", "hardware", "attempt", "checkpoint", "trial_id")

_TRIAL_METRICS = (
    "val_accuracy",
    "val_loss",
    "train_loss",
    "train_flops",
    "teacher_flops",
    "images_seen",
    "passes",
    "epoch",
    "num_params",
)


class ResultsError(ValueError):
    """The folder does not hold the results of a sweep; the message names what is missing."""


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """A sweep, read from its folder.

    trials: a row a trial: `trial`, `config/...`, `seed`, `status` (completed, stopped, failed, unfinished), `error`,
        `val_accuracy` and `test_accuracy` in [0, 1] (the latter for finalists only), `train_flops`, `images_seen`,
        `num_params`, `wall_s`, `cpu_s`, `hardware`, `checkpoint` (relative to the folder).
    epochs: a row an evaluation: `trial`, `epoch`, `train_flops`, `images_seen`, `train_loss`, `val_accuracy`, ...
    sweep: question, resolved configuration, dataset, versions, commit, machine.
    """

    folder: Path
    trials: pd.DataFrame
    epochs: pd.DataFrame
    sweep: dict[str, Any]

    @property
    def factors(self) -> list[str]:
        """The `config/...` columns that the sweep varied, without the seed."""
        return _settings_of(self.trials)


def load(path: str | os.PathLike[str]) -> SweepResults:
    """Read a results folder such as `results/patch_size/latest`.

    Raises:
        ResultsError: a file is missing or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ResultsError(f"{folder} is not a folder")
    for name in (TRIALS_FILE, EPOCHS_FILE, SWEEP_FILE):
        if not (folder / name).is_file():
            raise ResultsError(
                f"{folder} has no {name}: it is not the folder of a sweep, or none of its trials has ended"
            )
    try:
        return SweepResults(
            folder=folder,
            trials=pd.read_parquet(folder / TRIALS_FILE),
            epochs=pd.read_parquet(folder / EPOCHS_FILE),
            sweep=json.loads((folder / SWEEP_FILE).read_text()),
        )
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder} is damaged: {error}") from error


def merged(runs: Sequence[SweepResults]) -> SweepResults:
    """Runs of one sweep under the same settings as one: levels or seeds that were trained on different days.

    What is told of the run itself, such as its machine, is the first one's. A trial that one of them did not finish
    and another did is the other's.

    Raises:
        ResultsError: they differ in more than their trials, or both ended the same one.
    """
    first = runs[0]
    for other in runs[1:]:
        for name in ("sweep", "factor", "base", "dataset"):
            ours, theirs = first.sweep[name], other.sweep[name]
            if ours != theirs:
                raise ResultsError(f"{first.folder} and {other.folder} differ in {name}: {ours} and {theirs}")
        factor = f"config/{first.sweep['factor']}"
        for level in set(first.trials[factor]) & set(other.trials[factor]):
            ours, theirs = (run.sweep.get("bundles", {}).get(str(level)) for run in (first, other))
            if ours != theirs:
                raise ResultsError(f"{first.folder} and {other.folder} differ in {level}: {ours} and {theirs}")
    ended = pd.concat([run.trials.loc[run.trials["status"] != "unfinished", "trial"] for run in runs])
    trials, epochs = [], []
    for run in runs:
        given_up = run.trials["trial"].isin(ended) & (run.trials["status"] == "unfinished")
        trials.append(run.trials[~given_up])
        epochs.append(run.epochs[~run.epochs["trial"].isin(run.trials.loc[given_up, "trial"])])
    trials, epochs = pd.concat(trials, ignore_index=True), pd.concat(epochs, ignore_index=True)
    if (twice := trials.loc[trials["trial"].duplicated(), "trial"]).size:
        raise ResultsError(f"more than one of {', '.join(str(run.folder) for run in runs)} has {twice.iloc[0]}")
    return SweepResults(folder=first.folder, trials=trials, epochs=epochs, sweep=first.sweep)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What became of one trial, however it ended."""

    name: str
    trial_id: str
    point: Mapping[str, Any]
    status: str
    error: str | None
    history: list[dict[str, Any]]
    checkpoint: str | None


def to_frames(records: Iterable[TrialRecord]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two frames, sorted by trial name; a trial that never reported still has its row.

    A setting that is a word in some trials and a number, true or false in others is a word in all.
    """
    rows, epochs = [], []
    for record in sorted(records, key=lambda r: (r.name, r.trial_id)):
        last = record.history[-1] if record.history else {}
        row: dict[str, Any] = {"trial": record.name, "trial_id": record.trial_id}
        row |= {f"config/{name}": value for name, value in sorted(record.point.items())}
        row |= {"seed": record.point["seed"], "status": record.status, "error": record.error}
        row |= {name: last.get(name) for name in _TRIAL_METRICS}
        row |= {"test_accuracy": None, "wall_s": last.get("wall_s"), "cpu_s": last.get("cpu_s")}
        row |= {name: last.get(name) for name in ("hardware", "attempt")} | {"checkpoint": record.checkpoint}
        rows.append(row)
        epochs.extend({"trial": record.name, **epoch} for epoch in record.history)
    trials = pd.DataFrame(rows)
    for column in trials:
        if str(column).startswith("config/") and infer_dtype(trials[column], skipna=True).startswith("mixed"):
            # A column of parquet is of one type.
            trials[column] = trials[column].map(str, na_action="ignore").astype("string")
    for column in ("test_accuracy", *_TRIAL_METRICS, "wall_s", "cpu_s"):
        trials[column] = trials[column].astype("float64")
    for column in ("epoch", "num_params", "images_seen", "attempt"):
        trials[column] = trials[column].astype("Int64")
    for column in ("error", "hardware", "checkpoint"):
        trials[column] = trials[column].astype("string")
    return trials, pd.DataFrame(epochs, columns=None if epochs else ["trial", "epoch"])


def finalists(trials: pd.DataFrame, factor: str) -> pd.Index:
    """Rows whose test accuracy is measured: for each level of the factor, its best setting in validation, all seeds.

    Settings are ranked by mean validation accuracy over their completed seeds; one with a failed seed can win only if
    no setting of its level is whole.
    """
    settings = _settings_of(trials)
    done = trials.query("status == 'completed'")
    if done.empty:
        return done.index
    # A search may have drawn a setting twice: the second time tells nothing new, and is no further seed.
    done = done.drop_duplicates([*settings, "seed"])
    mean = done.groupby(settings, dropna=False)["val_accuracy"].agg(["size", "mean"]).reset_index()
    best = mean.sort_values(["size", "mean"], ascending=False).drop_duplicates(f"config/{factor}")
    chosen = done.reset_index().merge(best[settings], on=settings)
    return pd.Index(chosen["index"])


def _settings_of(trials: pd.DataFrame) -> list[str]:
    return [c for c in trials.columns if c.startswith("config/") and c != "config/seed"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A level of the factor, over the `n` trials of its finalist: means, and sample standard deviations (NaN if n=1).

    Accuracies are in [0, 1], those on the test split NaN before they are measured; times in seconds per trial.
    num_lost: seeds of the finalist that failed, or were stopped early, and are not among the `n`.
    """

    value: Any
    n: int
    num_lost: int = 0
    val_mean: float
    val_std: float
    test_mean: float
    test_std: float
    train_flops: float
    teacher_flops: float
    images_seen: float
    passes: float
    num_params: int
    cpu_s: float


def levels(trials: pd.DataFrame, factor: str) -> list[Level]:
    """The levels that have a finalist, best mean validation accuracy first."""
    chosen = trials.loc[finalists(trials, factor)]
    settings = _settings_of(trials)
    found = []
    for value, rows in chosen.groupby(f"config/{factor}", sort=False):
        mean = {name: float(rows[name].mean()) for name in ("train_flops", "images_seen", "passes", "cpu_s")}
        seeds = set(trials.merge(rows[settings].drop_duplicates(), on=settings)["seed"])
        found.append(
            Level(
                value=value,
                n=len(rows),
                num_lost=len(seeds) - len(rows),
                val_mean=float(rows["val_accuracy"].mean()),
                val_std=float(rows["val_accuracy"].std()),
                test_mean=float(rows["test_accuracy"].mean()),
                test_std=float(rows["test_accuracy"].std()),
                num_params=int(rows["num_params"].iloc[0]),
                teacher_flops=float(rows.get("teacher_flops", pd.Series([0.0])).fillna(0).mean()),
                **mean,
            )
        )
    return sorted(found, key=lambda level: -level.val_mean)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A level's mean test accuracy less the reference's, in points, with its interval (NaN where no seed repeats)."""

    value: Any
    n: int
    points: float
    low: float
    high: float


def differences(found: Sequence[Level], reference: Any) -> list[Difference]:
    """The levels beside the reference; none where it has no finalist.

    Student's t over seeds, with one variance for all levels: a few seeds of one level say little of it alone. With 95%
    probability all intervals together hold the truth (Bonferroni). That the test set is a sample too is not counted.
    """
    base = next((level for level in found if level.value == reference), None)
    if base is None:
        return []
    repeated = [level for level in found if level.n > 1]
    freedom = sum(level.n - 1 for level in repeated)
    variance = sum((level.n - 1) * level.test_std**2 for level in repeated) / freedom if freedom else math.nan
    quantile = float(stdtrit(freedom, 1 - 0.025 / max(1, len(found) - 1))) if freedom else math.nan
    result = []
    for level in found:
        if level is base:
            continue
        points = 100 * (level.test_mean - base.test_mean)
        margin = 100 * quantile * math.sqrt(variance * (1 / level.n + 1 / base.n))
        result.append(
            Difference(value=level.value, n=level.n, points=points, low=points - margin, high=points + margin)
        )
    return result


def write_frame(frame: pd.DataFrame, file: Path) -> None:
    """Write parquet so that a reader never sees half a file."""
    fresh = file.with_name(f".{file.name}")
    frame.to_parquet(fresh, index=False)
    fresh.replace(file)


def write_json(content: Any, file: Path) -> None:
    """Write JSON so that a reader never sees half a file."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}-", delete=False) as fresh:
        json.dump(content, fresh, indent=2, default=str)
        fresh.write("\n")
    Path(fresh.name).chmod(0o644)
    Path(fresh.name).replace(file)
