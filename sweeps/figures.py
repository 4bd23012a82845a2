"""Figures of a sweep, drawn from its frames alone."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from sweeps.results import SweepResults, finalists

matplotlib.use("Agg")

_COLOURS = ("#1b6ca8", "#e07a1f", "#3a923a", "#c03d3e", "#8055a8", "#7a5230", "#d684bd", "#6b6b6b")


def draw_all(results: SweepResults, folder: Path) -> dict[str, str]:
    """Draw what the results have the data for; returns file names by caption."""
    folder.mkdir(exist_ok=True)
    drawn = {}
    for name, (caption, draw) in _FIGURES.items():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=130)
        if draw(results, figure):
            figure.savefig(folder / f"{name}.png")
            drawn[caption] = f"{folder.name}/{name}.png"
    return drawn


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Rows that no other row beats at the same or a lower cost, cheapest first."""
    order = np.lexsort((-value, cost))
    best = np.maximum.accumulate(value[order])
    is_first = np.concatenate([[True], best[1:] > best[:-1]])
    return order[is_first]


def importance(results: SweepResults) -> dict[str, float]:
    """Share of the variance of validation accuracy that each setting explains (fANOVA, Hutter et al., 2014).

    What was drawn by its logarithm is weighed by that. Empty with fewer than two varied settings or eight completed
    trials, or where all are equally good: too little to say.
    """
    done = results.trials.query("status == 'completed'")
    columns = {c: pd.Series(done[c]) for c in (*results.factors, "config/seed")}
    for name, domain in results.sweep.get("space", {}).items():
        if domain.get("log") and f"config/{name}" in columns:
            columns[f"config/{name}"] = columns[f"config/{name}"].map(math.log10)
    # What is missing is the setting `none`, a choice like the others.
    columns = {c: v.astype(object).where(v.notna(), None) if v.hasnans else v for c, v in columns.items()}
    names = [c for c, values in columns.items() if values.nunique(dropna=False) > 1]
    if len(names) < 2 or len(done) < 8 or len(set(done["val_accuracy"])) < 2:
        return {}
    # scikit-learn comes with it, and takes a second to load.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    points = [dict(zip(names, row, strict=True)) for row in zip(*(columns[name] for name in names), strict=True)]
    known: dict[str, BaseDistribution] = {
        name: FloatDistribution(columns[name].min(), columns[name].max())
        if pd.api.types.is_float_dtype(columns[name])
        else CategoricalDistribution(sorted(columns[name].unique().tolist(), key=repr))
        for name in names
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for point, value in zip(points, done["val_accuracy"], strict=True):
        study.add_trial(optuna.trial.create_trial(params=point, distributions=known, value=float(value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        scores = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name.removeprefix("config/"): float(score) for name, score in scores.items()}


def _accuracy_against_flops(results: SweepResults, figure: Figure) -> bool:
    epochs = _with_level(results)
    if epochs.empty:
        return False
    axes = figure.subplots()
    for colour, (level, rows) in zip(_palette(epochs), epochs.groupby("level", sort=False), strict=False):
        axes.plot(rows["train_flops"], 100 * rows["val_accuracy"], ".", ms=5, color=colour, label=str(level), alpha=0.8)
    front = pareto_front(epochs["train_flops"].to_numpy(), epochs["val_accuracy"].to_numpy())
    best = epochs.iloc[front]
    axes.step(best["train_flops"], 100 * best["val_accuracy"], where="post", color="black", lw=1, label="Pareto front")
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="validation accuracy, %")
    axes.legend(title=_factor(results), fontsize=8)
    axes.grid(alpha=0.25)
    return True


def _learning_curves(results: SweepResults, figure: Figure) -> bool:
    epochs = _with_level(results)
    if epochs.empty:
        return False
    axes = figure.subplots()
    for colour, (level, rows) in zip(_palette(epochs), epochs.groupby("level", sort=False), strict=False):
        for number, (_, trial) in enumerate(rows.groupby("trial")):
            axes.plot(
                trial["images_seen"],
                100 * trial["val_accuracy"],
                color=colour,
                lw=1.2,
                alpha=0.8,
                label=str(level) if number == 0 else None,
            )
    axes.set(xscale="log", xlabel="pictures seen", ylabel="validation accuracy, %")
    axes.legend(title=_factor(results), fontsize=8)
    axes.grid(alpha=0.25)
    return True


def _loss_and_its_floor(results: SweepResults, figure: Figure) -> bool:
    epochs = _with_level(results)
    if "loss_floor" not in epochs:
        return False
    axes = figure.subplots()
    # With a teacher the loss is a mixture; the floor is that of the labels' part.
    loss = epochs["train_loss"] if "hard_loss" not in epochs else epochs["hard_loss"].fillna(epochs["train_loss"])
    by_level = epochs.assign(loss=loss).groupby("level", sort=False)
    for colour, (level, rows) in zip(_palette(epochs), by_level, strict=False):
        mean = pd.DataFrame(rows.groupby("epoch")[["images_seen", "loss", "loss_floor"]].mean())
        axes.plot(mean["images_seen"], mean["loss"], color=colour, lw=1.2, label=str(level))
        axes.plot(mean["images_seen"], mean["loss_floor"], color=colour, lw=1.2, ls="--")
    axes.set(xlabel="pictures seen", ylabel="cross-entropy, nats; dashed: its floor", ylim=(0, None))
    axes.legend(title=_factor(results), fontsize=8)
    axes.grid(alpha=0.25)
    return True


def _spread(results: SweepResults, figure: Figure) -> bool:
    factor = _factor(results)
    chosen = results.trials.loc[finalists(results.trials, factor)]
    if chosen.empty:
        return False
    axes = figure.subplots()
    levels = sorted(chosen[f"config/{factor}"].unique())
    for place, level in enumerate(levels):
        rows = chosen[chosen[f"config/{factor}"] == level]
        for column, marker, offset in (("val_accuracy", "o", -0.08), ("test_accuracy", "D", 0.08)):
            values = 100 * rows[column].astype(float)
            colour = _COLOURS[0] if column == "val_accuracy" else _COLOURS[1]
            label = column.replace("_", " ") if place == 0 else None
            axes.plot([place + offset] * len(rows), values, marker, color=colour, ms=5, alpha=0.8, label=label)
            axes.hlines(values.mean(), place + offset - 0.12, place + offset + 0.12, color=colour)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set(xlabel=factor, ylabel="accuracy, %; a point a seed, a line their mean")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25, axis="y")
    return True


def _importance(results: SweepResults, figure: Figure) -> bool:
    scores = importance(results)
    if not scores:
        return False
    axes = figure.subplots()
    names = list(scores)[::-1]
    axes.barh(names, [100 * scores[name] for name in names], color=_COLOURS[0])
    axes.set(xlabel="share of the variance of validation accuracy, %")
    return True


_FIGURES: dict[str, tuple[str, Callable[[SweepResults, Figure], bool]]] = {
    "accuracy_against_flops": ("Accuracy against training FLOPs", _accuracy_against_flops),
    "learning_curves": ("Learning curves", _learning_curves),
    "training_loss": ("Training loss, and the floor that mixed and smoothed labels put under it", _loss_and_its_floor),
    "spread_over_seeds": ("Spread over seeds", _spread),
    "importance": ("What mattered most", _importance),
}


def _with_level(results: SweepResults) -> pd.DataFrame:
    """Epochs of all trials with the level of the factor beside them, levels in rising order."""
    if results.epochs.empty:
        return results.epochs
    levels = results.trials[["trial", f"config/{_factor(results)}"]].set_axis(["trial", "level"], axis=1)
    return results.epochs.merge(levels, on="trial").sort_values(["level", "trial", "epoch"], ignore_index=True)


def _factor(results: SweepResults) -> str:
    return results.sweep["factor"]


def _palette(epochs: pd.DataFrame) -> Sequence[Any]:
    """A colour a level; of more than twenty some are alike."""
    num_levels = len(epochs["level"].unique())
    if num_levels <= len(_COLOURS):
        return _COLOURS
    many = matplotlib.colormaps["tab20"]
    return [many(place % many.N) for place in range(num_levels)]
