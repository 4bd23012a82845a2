"""A sweep's question, and what the flags make of it: the settings all trials share, the points, and their cost."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data import Dataset
from core.models import WastefulModelWarning
from core.train_config import Plan, plan
from sweeps.flags import Flags, UsageError, parse_overrides
from sweeps.results import Level
from sweeps.space import Choice, Domain, Point, Space, grid_points, random_points
from sweeps.trial import SETTABLE_FIELDS, configure

SMOKE_PICTURES = 640
_SMOKE = {"embed_dim": 16, "depth": 1, "num_heads": 2, "batch_size": 64, "reports": 2, "compile": False}
_REPORTS = 8


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question put to the trials.

    factor: the setting that the question is about; each of its levels gets a finalist.
    grid: the choices that `--search grid` combines; `--search random` and `optuna` draw from these and `search`.
    base: fields of the model and the training that all trials share (see `sweeps.trial.SETTABLE_FIELDS`).
    budget, seeds: training FLOPs of a trial and the number of seeds where the user gives none.
    answer: a sentence or two from the levels, best in validation first.
    description: the text of `--help`.
    """

    name: str
    question: str
    factor: str
    grid: Mapping[str, Choice]
    answer: Callable[[Sequence[Level]], str]
    budget: float
    description: str | None
    seeds: int = 2
    search: Space = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A sweep under its flags.

    base: fields that all trials share.
    space: what varies; a grid search combines it, the others draw from it.
    points: the trials of a grid or random search; for Optuna one stand-in a level, as it chooses its own later.
    num_trials: how many the first stage has.
    """

    base: dict[str, Any]
    space: dict[str, Domain]
    points: list[Point]
    num_trials: int

    @property
    def num_reports(self) -> int:
        """Evaluations of a trial, at most."""
        return self.base["reports"] or math.ceil(self.base.get("epochs") or 1)


def with_defaults(flags: Flags, sweep: Sweep) -> Flags:
    """The flags with the sweep's own defaults filled in, so that a resumed run needs nothing else."""
    has_budget = flags.budget or flags.epochs or flags.smoke
    return dataclasses.replace(
        flags,
        search=flags.search or "grid",
        seeds=flags.seeds or (1 if flags.smoke else sweep.seeds),
        budget=flags.budget if has_budget else sweep.budget,
    )


def resolve(sweep: Sweep, flags: Flags) -> Resolved:
    """Work out what the trials share and where they differ.

    Raises:
        UsageError: `--set` names an unknown field, or one that the sweep or another flag decides.
    """
    seeds = flags.seeds or 1
    overrides = parse_overrides(flags.set)
    for name in overrides:
        if name in (*sweep.grid, "seed", "flops", "epochs", "images"):
            raise UsageError(f"--set {name}: this sweep or another flag decides it")
        if name not in SETTABLE_FIELDS:
            raise UsageError(f"--set {name}: unknown; there are: {', '.join(sorted(SETTABLE_FIELDS))}")
    base = {"reports": _REPORTS, **sweep.base, **_budget(flags)}
    if flags.smoke:
        base |= _SMOKE
    if flags.scheduler == "asha":
        base["schedule"] = "trapezoid"
    space: dict[str, Domain] = dict(sweep.grid)
    if flags.search == "grid":
        points = grid_points(sweep.grid, seeds)
    else:
        space |= {name: domain for name, domain in sweep.search.items() if name not in overrides}
        points = random_points(space, flags.num_samples, seeds)
    if flags.search == "optuna":
        levels = sweep.grid[sweep.factor].values
        points = [{**points[0], sweep.factor: level, "seed": 0} for level in levels]
    return Resolved(
        base=base | overrides,
        space=space,
        points=points,
        num_trials=flags.num_samples if flags.search == "optuna" else len(points),
    )


def plans_by_level(sweep: Sweep, resolved: Resolved, data: Dataset) -> dict[Any, Plan | None]:
    """The cost of each level, by its first setting that can be built; None where none can: those will be failed rows.

    Raises:
        UsageError: no level can be built, so that not one trial would train.
    """
    plans: dict[Any, Plan | None] = {}
    problem: Exception | None = None
    for point in resolved.points:
        level = point[sweep.factor]
        if plans.get(level):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WastefulModelWarning)
                plans[level] = plan(configure({**resolved.base, **point}, data), len(data.train))
        except (ValueError, TypeError) as error:
            plans[level], problem = None, error
    if problem is not None and not any(plans.values()):
        raise UsageError(f"no trial can be trained: {problem}")
    return plans


def _budget(flags: Flags) -> dict[str, Any]:
    if flags.epochs:
        return {"epochs": flags.epochs, "reports": None}
    if flags.budget:
        return {"flops": flags.budget}
    return {"images": SMOKE_PICTURES}
