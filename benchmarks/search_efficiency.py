"""Does Optuna with ASHA find what the whole grid finds, for a quarter of its FLOPs?

    python -m benchmarks.search_efficiency --output docs/records/search/search_efficiency.json

The grid: patch size, learning rate and batch size of a small ViT, each cell trained to the end. The searches, one a
search seed: the same cells through `--search optuna --scheduler asha`, which chooses where to look and lets only the
best third of the trials go on at each rung. All are runs of `sweeps/patch_size.py` as a user starts it, with one
schedule and one seed, so that a cell trained to the end has the same accuracy in all of them. They are kept below
`--folder`, and gone on with.

Compared are the validation accuracies that the grid knows: of the cell that a search chose, and of the grid's best.
Beside them stand two lotteries. The best of as many cells as the FLOPs pay for, drawn from the grid blindly and trained
to the end: an expectation over all draws, by counting. And as many cells as a search has trials, drawn blindly, of
which the best third goes on at each rung as in the searches: the mean of many draws, replayed on the grid's curves.
"""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from benchmarks.record import at_most, conclude, spread
from sweeps.halving import SuccessiveHalving, remaining
from sweeps.results import SweepResults, finalists, load

_ROOT = Path(__file__).resolve().parents[1]
_SWEEP = "patch_size"
_CELLS = ("patch_size=8,16", "learning_rate=3e-4,1e-3,2e-3,5e-3,1e-2,3e-2", "batch_size=64,128,256")
_MODEL = ("embed_dim=64", "depth=4", "weight_decay=0.05", "schedule=trapezoid")
_FIELDS = ("patch_size", "learning_rate", "batch_size")
_TARGET_POINTS = 0.5
_TARGET_SHARE = 25.0
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    budget: float = 8e11
    """Training FLOPs of a cell."""
    num_samples: int = 30
    """Settings that a search draws."""
    searches: int = 3
    """How many searches, with search seeds 0, 1, ..."""
    dataset: str = "cifar10"
    """As in the sweeps; CIFAR-10 is found by PATCHWORK_DATA."""
    folder: Path = Path("results/search_efficiency")
    """Where the sweeps keep their results."""
    output: Path | None = None
    """Write a JSON record here, and the figure beside it."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search cost, as a share of the grid's FLOPs, and what the grid knows of the cell that it chose."""

    flops_share: float
    trials: int
    stopped: int
    chosen: dict[str, float]
    accuracy: float
    points_below: float


def expected_best(values: Sequence[float], draws: float) -> float:
    """The mean of the best of `draws` different values drawn blindly; between whole numbers of draws on a line."""
    ordered, low = np.sort(values), math.floor(draws)

    def of(count: int) -> float:
        ways = np.array([math.comb(rank, count - 1) for rank in range(len(ordered))], dtype=float)
        return float(ordered @ ways / ways.sum())

    if draws <= 1 or draws >= len(ordered):
        return of(1 if draws <= 1 else len(ordered))
    return of(low) + (draws - low) * (of(low + 1) - of(low))


def blindly_halved(curves: Sequence[Sequence[float]], trials: int) -> float:
    """The mean accuracy of the cell that remains of `trials` ones drawn blindly, each given by its reports."""
    generator, ends = np.random.default_rng(0), []
    rungs = SuccessiveHalving(len(curves[0])).rungs
    for _ in range(_DRAWS):
        going = generator.choice(len(curves), trials, replace=False).tolist()
        for rung in rungs:
            ranked = sorted(going, key=lambda cell: -curves[cell][rung.report - 1])
            going = ranked[: remaining(len(going))]
        ends.append(max(curves[cell][-1] for cell in going))
    return float(np.mean(ends))


def results_of(settings: Settings, name: str, *flags: str) -> SweepResults:
    """Run a sweep, or what is left of it.

    Raises:
        SystemExit: its folder holds a run with other settings.
    """
    folder = settings.folder / _SWEEP / name
    words = ["--resume", str(folder)]
    if folder.exists():
        made = load(folder).sweep["flags"]
        asked = {"dataset": settings.dataset, "budget": settings.budget, "vary": list(_CELLS), "set": list(_MODEL)}
        if name != "grid":
            asked["num_samples"] = settings.num_samples
        if {key: made[key] for key in asked} != asked:
            sys.exit(f"{folder} was made with other settings; give another --folder")
    else:
        words = ["--dataset", settings.dataset, "--budget", f"{settings.budget:g}", "--seeds", "1"]
        words += ["--vary", *_CELLS, "--set", *_MODEL, "--storage", str(settings.folder), "--name", name, *flags]
    print("python sweeps/patch_size.py", *words, flush=True)
    subprocess.run([sys.executable, str(_ROOT / "sweeps" / "patch_size.py"), *words], check=True)
    return load(folder)


def judge(grid: pd.DataFrame, searched: pd.DataFrame) -> Search:
    """The sweep's own choice among the trials of a search, looked up in the grid."""
    cells, trials = rows_of(grid), rows_of(searched)
    accuracies = {cell_of(row): row["val_accuracy"] for row in cells}
    done = rows_of(searched.loc[finalists(searched, "patch_size")])
    chosen = cell_of(max(done, key=lambda row: row["val_accuracy"]))
    return Search(
        flops_share=100 * _flops(trials) / _flops(cells),
        trials=len(trials),
        stopped=sum(row["status"] == "stopped" for row in trials),
        chosen=dict(zip(_FIELDS, chosen, strict=True)),
        accuracy=accuracies[chosen],
        points_below=100 * (max(accuracies.values()) - accuracies[chosen]),
    )


def rows_of(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """The trials as dicts."""
    return [{str(name): value for name, value in row.items()} for row in trials.to_dict(orient="records")]


def cell_of(trial: Mapping[str, Any]) -> tuple[float, ...]:
    """Where in the grid a trial lies."""
    return tuple(float(trial[f"config/{name}"]) for name in _FIELDS)


def _flops(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["train_flops"] for row in rows)


def draw(accuracies: Sequence[float], searches: Sequence[Search], file: Path) -> None:
    """The searches, and the lottery, against their share of the grid's FLOPs."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=130)
    axes = figure.subplots()
    shares = [100 * count / len(accuracies) for count in range(1, len(accuracies) + 1)]
    lottery = [100 * expected_best(accuracies, count) for count in range(1, len(accuracies) + 1)]
    axes.plot(shares, lottery, color="#6b6b6b", label="best of so many cells, drawn blindly")
    best = 100 * max(accuracies)
    axes.axhspan(best - _TARGET_POINTS, best, color="#3a923a", alpha=0.15, lw=0, label="within 0.5 points of the best")
    x, y = [one.flops_share for one in searches], [100 * one.accuracy for one in searches]
    axes.plot(x, y, "o", color="#e07a1f", label="Optuna + ASHA, a dot a search")
    axes.axvline(_TARGET_SHARE, color="black", lw=0.8, ls=":")
    axes.set(xlabel="share of the grid's training FLOPs, %", ylabel="validation accuracy of the best cell found, %")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(file)


def main(settings: Settings) -> None:
    """Run the grid and the searches, and compare."""
    results = results_of(settings, "grid")
    grid, searches = results.trials, []
    for seed in range(settings.searches):
        flags = ("--search", "optuna", "--scheduler", "asha", "--num-samples", str(settings.num_samples))
        searches.append(judge(grid, results_of(settings, f"search-{seed}", *flags, "--search-seed", str(seed)).trials))
    accuracies = grid["val_accuracy"].tolist()
    ordered = sorted((100 * value for value in accuracies), reverse=True)
    print(f"\nthe grid: {len(grid)} cells; best, second, median, worst: ", end="")
    print(f"{ordered[0]:.1f}, {ordered[1]:.1f}, {ordered[len(ordered) // 2]:.1f}, {ordered[-1]:.1f}%")
    for number, one in enumerate(searches):
        print(
            f"search {number}: {one.trials} trials, {one.stopped} stopped, {one.flops_share:.1f}% of the grid's FLOPs; "
            f"chose {one.chosen}, {100 * one.accuracy:.1f}%, {one.points_below:.2f} points below the best"
        )
    share = spread([one.flops_share for one in searches])
    below = spread([one.points_below for one in searches])
    blind = ordered[0] - 100 * expected_best(accuracies, len(grid) * share.median / 100)
    print(f"drawn blindly for the same FLOPs: {blind:.2f} points below, on average")
    curves = [curve.tolist() for _, curve in results.epochs.sort_values("epoch").groupby("trial")["val_accuracy"]]
    halved = ordered[0] - 100 * blindly_halved(curves, settings.num_samples)
    print(f"{settings.num_samples} drawn blindly, the best third going on: {halved:.2f} points below, on average")
    verdicts = [
        at_most(
            claim="the worst search's choice lies below the grid's best by",
            measured=below.high,
            target=_TARGET_POINTS,
            unit="points",
        ),
        at_most(
            claim="the dearest search took, of the grid's FLOPs,",
            measured=share.high,
            target=_TARGET_SHARE,
            unit="%",
        ),
    ]
    figures = {
        "grid": [
            {"cell": cell_of(row), "val_accuracy": row["val_accuracy"], "train_flops": row["train_flops"]}
            for row in rows_of(grid)
        ],
        "searches": [asdict(one) for one in searches],
        "blind_points_below": blind,
        "blindly_halved_points_below": halved,
    }
    conclude("search_efficiency", settings, figures, verdicts, settings.output)
    if settings.output is not None:
        draw(accuracies, searches, settings.output.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
