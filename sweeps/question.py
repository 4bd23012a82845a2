"""A sweep's question, and what the flags make of it: the settings all trials share, the points, and their cost."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data import Dataset
from core.distill import WeakTeacherWarning
from core.models import WastefulModelWarning
from core.train import check_fit
from core.train_config import Plan, plan
from nodes.command import UsageError
from sweeps.flags import Flags, parse_choices, parse_overrides
from sweeps.results import Level
from sweeps.space import Choice, Domain, Point, Space, grid_points, random_points
from sweeps.trial import MODEL_FIELDS, SETTABLE_FIELDS, Recipe, model_fields

SMOKE_PICTURES = 640
_SMOKE = {
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "width": 8,
    "trunk_width": 8,
    "batch_size": 64,
    "reports": 2,
    "compile": False,
}
_REPORTS = 8
_STOPPABLE = "trapezoid"
_DECIDED_BY_FLAGS = ("seed", "flops", "epochs", "images")
_OF_A_TEACHER = ("teacher", "distill_weight", "standardise_logits", "feature_weight", "count_teacher")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question put to the trials.

    factor: the setting that the question is about; each of its levels gets a finalist.
    grid: the choices that `--search grid` combines; `--search random` and `optuna` draw from these and `search`.
    bundles: the fields that each level of the factor stands for, where the factor is no field itself.
    irrelevant: for a level of the factor, other settings that mean nothing to it: a grid gives it one value of each.
    search_levels: the levels that a random search or Optuna draws from; None for all.
    reference: the level that the others are compared with; None for no such comparison.
    prototype: test accuracy, in [0, 1], of earlier work at a level; tables show it, and the gain over it.
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
    bundles: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    irrelevant: Mapping[Any, Sequence[str]] = field(default_factory=dict)
    search_levels: tuple[Any, ...] | None = None
    reference: Any = None
    prototype: Mapping[Any, float] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A sweep under its flags.

    recipe: fields that all trials share, and those of each level.
    space: what varies; a grid search combines it, the others draw from it.
    points: the trials of a grid or random search; for Optuna one stand-in a level, as it chooses its own later.
    num_trials: how many the first stage has.
    """

    recipe: Recipe
    space: dict[str, Domain]
    points: list[Point]
    num_trials: int

    @property
    def base(self) -> Mapping[str, Any]:
        """Fields that all trials share."""
        return self.recipe.base


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
        UsageError: `--set` or `--vary` names an unknown field, or one that the sweep or another flag decides, or one
            without which two levels would be the same, or `--set` one that means nothing to any trial.
    """
    seeds = seeds_of(flags)
    overrides, varied = parse_overrides(flags.set), parse_choices(flags.vary)
    grid = _grid(sweep, varied)
    for name in overrides:
        if name in (*grid, *_DECIDED_BY_FLAGS):
            raise UsageError(f"--set {name}: this sweep or another flag decides it")
        _check_known("--set", name)
    levels = grid[sweep.factor].values if flags.search == "grid" else _searched_levels(sweep, varied, flags.search)
    _check_levels_differ(sweep, levels, overrides, varied)
    forced = {**(_SMOKE if flags.smoke else {}), **overrides}
    if flags.scheduler == "asha":
        if {overrides.get("schedule"), *varied.get("schedule", ())} - {None, _STOPPABLE}:
            raise UsageError(f"schedule: --scheduler asha stops trials early and trains all with {_STOPPABLE}")
        if "reports" in varied:
            raise UsageError("--vary reports: --scheduler asha compares trials at the same report of each")
        forced["schedule"] = _STOPPABLE
    base = {"reports": _REPORTS, **sweep.base, **_budget(flags), **forced}
    bundles = {
        level: {name: value for name, value in bundle.items() if name not in forced}
        for level, bundle in sweep.bundles.items()
    }
    space: dict[str, Domain] = {**grid, sweep.factor: Choice(levels)}
    if flags.search == "grid":
        points = _without_repetitions(grid_points(grid, seeds), sweep, grid)
    else:
        space |= {name: domain for name, domain in sweep.search.items() if name not in (*overrides, *varied)}
        points = random_points(space, flags.num_samples, seeds, flags.search_seed)
    if flags.search == "optuna":
        points = [{**points[0], sweep.factor: level, "seed": seeds[0]} for level in levels]
    recipe = Recipe(base=base, factor=sweep.factor, bundles=bundles)
    _check_trials_have(overrides, recipe, points)
    return Resolved(
        recipe=recipe,
        space=space,
        points=points,
        num_trials=int(min(flags.num_samples, _size(space))) if flags.search == "optuna" else len(points),
    )


def seeds_of(flags: Flags) -> range:
    """The seeds that each setting is trained with."""
    return range(flags.first_seed, flags.first_seed + (flags.seeds or 1))


def _size(space: Space) -> float:
    """How many settings there are."""
    return math.prod(len(domain.values) if isinstance(domain, Choice) else math.inf for domain in space.values())


def _grid(sweep: Sweep, varied: Mapping[str, tuple[Any, ...]]) -> dict[str, Choice]:
    grid = dict(sweep.grid)
    for name, values in varied.items():
        if name == sweep.factor and sweep.bundles:
            if unknown := [str(value) for value in values if value not in sweep.bundles]:
                raise UsageError(f"--vary {name}: no {', '.join(unknown)}; there are: {', '.join(sweep.bundles)}")
        elif name not in grid:
            if name in _DECIDED_BY_FLAGS:
                raise UsageError(f"--vary {name}: another flag decides it")
            _check_known("--vary", name)
        grid[name] = Choice(values)
    return grid


def _searched_levels(sweep: Sweep, varied: Mapping[str, tuple[Any, ...]], search: str | None) -> tuple[Any, ...]:
    """The levels that a random search or Optuna draws from: those that are named, else the sweep's."""
    known = sweep.search_levels or sweep.grid[sweep.factor].values
    chosen = varied.get(sweep.factor, known)
    if sweep.search_levels and (useless := [str(level) for level in chosen if level not in known]):
        raise UsageError(
            f"--vary {sweep.factor}: --search {search} cannot use {', '.join(useless)}; "
            f"it draws from: {', '.join(map(str, known))}"
        )
    return chosen


def _check_known(flag: str, name: str) -> None:
    if name not in SETTABLE_FIELDS:
        raise UsageError(f"{flag} {name}: unknown; there are: {', '.join(sorted(SETTABLE_FIELDS))}")


def _check_trials_have(overrides: Mapping[str, Any], recipe: Recipe, points: Sequence[Point]) -> None:
    """Refuse fields that would be passed over: of other models than those of the trials, or of a teacher nobody has."""
    trials = [recipe.fields(point) for point in points]
    of_models = [known for fields in trials if (known := model_fields(fields)) is not None]
    distils = any(fields.get("temperature") is not None for fields in trials)
    for name in overrides:
        if name in MODEL_FIELDS and of_models and not any(name in known for known in of_models):
            there = ", ".join(sorted(frozenset().union(*of_models)))
            raise UsageError(f"--set {name}: no model of this sweep has it; they have: {there}")
        if name in _OF_A_TEACHER and not distils:
            raise UsageError(f"--set {name}: no trial of this sweep has a teacher; --set temperature=4 gives all one")


def _check_levels_differ(
    sweep: Sweep, levels: Sequence[Any], overrides: Mapping[str, Any], varied: Mapping[str, Any]
) -> None:
    """Refuse fields that go before those of the levels where two levels differ in nothing else."""
    for level, other in itertools.combinations(levels, 2) if sweep.bundles else ():
        one, two = sweep.bundles[level], sweep.bundles[other]
        differing = sorted(
            name for name in {*one, *two} if name not in one or name not in two or one[name] != two[name]
        )
        if differing and all(name in overrides or name in varied for name in differing):
            named = ", ".join(f"{'--set' if name in overrides else '--vary'} {name}" for name in differing)
            raise UsageError(
                f"{named}: {level} and {other} differ in nothing else and would be trained alike; "
                f"vary {sweep.factor} instead, or keep one of them by --vary {sweep.factor}={level}"
            )


def _without_repetitions(points: list[Point], sweep: Sweep, grid: Mapping[str, Choice]) -> list[Point]:
    """Those points whose settings that mean nothing to their level have the first of the values."""
    return [
        point
        for point in points
        if all(
            point[name] == grid[name].values[0]
            for name in sweep.irrelevant.get(point[sweep.factor], ())
            if name in grid
        )
    ]


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
                warnings.simplefilter("ignore", WeakTeacherWarning)  # told once, when the teacher was looked up
                config = resolved.recipe.configure(point, data)
                check_fit(config, data)
                plans[level] = plan(config, len(data.train))
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # PyTorch's, of sizes beyond reason
            plans[level], problem = None, error
    if problem is not None and not any(plans.values()):
        raise UsageError(f"no trial can be trained: {problem}")
    return plans


def _budget(flags: Flags) -> dict[str, Any]:
    if flags.epochs:
        # A report a pass; where reports decide what goes on, as few as else: the first must be past the warm-up.
        return {"epochs": flags.epochs, **({} if flags.scheduler == "asha" else {"reports": None})}
    if flags.budget:
        return {"flops": flags.budget}
    return {"images": SMOKE_PICTURES}
