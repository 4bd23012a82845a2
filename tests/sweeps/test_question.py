from typing import Any

import pytest

from core.data import Dataset
from nodes.command import UsageError
from sweeps.flags import Flags
from sweeps.patch_size import SWEEP
from sweeps.question import plans_by_level, resolve, with_defaults
from sweeps.runner import scheduler_of
from sweeps.space import Choice


def resolved(**flags: Any) -> Any:
    return resolve(SWEEP, with_defaults(Flags(**flags), SWEEP))


def test_a_grid_is_the_sweeps_choices_with_seeds() -> None:
    result = resolved(seeds=3)
    assert result.num_trials == len(result.points) == 12
    assert result.base["flops"] == SWEEP.budget
    assert {tuple(point) for point in result.points} == {("patch_size", "seed")}


def test_random_search_draws_from_the_larger_space_but_not_what_is_set() -> None:
    result = resolved(search="random", num_samples=5, seeds=2, set=("weight_decay=0.1",))
    assert result.num_trials == 10
    assert set(result.points[0]) == {"patch_size", "learning_rate", "seed"}
    assert result.base["weight_decay"] == 0.1


def test_what_is_varied_by_hand_is_searched_there_and_nowhere_else() -> None:
    result = resolved(search="random", num_samples=5, vary=("learning_rate=1e-3,2e-3",), set=("weight_decay=0.1",))
    assert {point["learning_rate"] for point in result.points} <= {1e-3, 2e-3}
    assert resolved(search="optuna", vary=("learning_rate=1e-3,2e-3",)).space["learning_rate"] == Choice((1e-3, 2e-3))


def test_another_search_seed_draws_other_settings() -> None:
    draws = [resolved(search="random", num_samples=5, search_seed=seed).points for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_search_has_no_more_trials_than_there_are_settings() -> None:
    few = ("patch_size=4,8", "learning_rate=1e-3,2e-3")
    assert resolved(search="optuna", vary=few, set=("weight_decay=0.1",), num_samples=20).num_trials == 4
    assert resolved(search="optuna", vary=few, num_samples=20).num_trials == 20


def test_asha_trains_with_a_schedule_that_may_be_stopped() -> None:
    assert resolved(scheduler="asha").base["schedule"] == "trapezoid"
    assert resolved(scheduler="asha", set=("schedule=trapezoid",)).base["schedule"] == "trapezoid"
    for flags in ({"set": ("schedule=cosine",)}, {"vary": ("schedule=cosine,trapezoid",)}):
        with pytest.raises(UsageError, match="schedule: --scheduler asha stops trials early"):
            resolved(scheduler="asha", **flags)
    with pytest.raises(UsageError, match="--vary reports: --scheduler asha compares trials at the same report"):
        resolved(scheduler="asha", vary=("reports=8,16",))


def test_asha_has_rungs_up_to_the_last_report_of_the_longest_plan(shapes: Dataset) -> None:
    flags = Flags(scheduler="asha", budget=1e12, set=("reports=none",))
    plans = plans_by_level(SWEEP, resolve(SWEEP, flags), shapes)
    passes = {level: len(plan.report_steps) for level, plan in plans.items() if plan}
    assert passes[16] > 100 > passes[2]
    scheduler = scheduler_of(flags, plans.values())
    assert scheduler is not None
    assert [rung.report for rung in scheduler.rungs] == [1, 3, 9, 27, 81, 243][: len(scheduler.rungs)]
    assert scheduler.rungs[-1].report < passes[16] <= 3 * scheduler.rungs[-1].report


def test_budgets_exclude_each_other() -> None:
    assert resolved(epochs=2.0).base["epochs"] == 2 and "flops" not in resolved(epochs=2.0).base
    assert resolved(smoke=True, budget=1e9).base["flops"] == 1e9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("widht=3", "--set widht: unknown; there are: .*embed_dim"),
        ("patch_size=4", "--set patch_size: this sweep or another flag decides it"),
        ("flops=1e9", "another flag decides it"),
        ("num_classes=4", "--set num_classes: unknown"),
        ("width=256", "--set width: no model of this sweep has it; they have: depth, .*embed_dim"),
        ("teacher=best", "--set teacher: no trial of this sweep has a teacher; --set temperature=4 gives all one"),
    ],
)
def test_overrides_are_checked(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolved(set=(override,))


def test_a_model_of_another_kind_brings_its_own_settings() -> None:
    assert resolved(set=("model=resnet", "width=32")).base["width"] == 32
    with pytest.raises(UsageError, match="--set embed_dim: no model of this sweep has it; they have: "):
        resolved(set=("model=resnet", "embed_dim=64"))
    assert resolved(set=("temperature=4", "teacher=best")).base["teacher"] == "best"


def test_seeds_begin_where_they_are_told_to() -> None:
    for search in ("grid", "random"):
        points = resolved(search=search, seeds=2, first_seed=3, num_samples=2).points
        assert {point["seed"] for point in points} == {3, 4}
    assert resolved(search="optuna", first_seed=3).points[0]["seed"] == 3


@pytest.mark.parametrize("override", ["mlp_ratio=inf", "embed_dim=40000000000", "batch_size=true", "device=gpu"])
def test_values_beyond_reason_are_told_in_a_sentence(override: str, shapes: Dataset) -> None:
    with pytest.raises(UsageError, match="no trial can be trained: "):
        plans_by_level(SWEEP, resolved(set=(override,)), shapes)


def test_plans_name_the_reason_when_nothing_can_be_trained(shapes: Dataset) -> None:
    with pytest.raises(UsageError, match="no trial can be trained: num_heads=5 does not divide embed_dim=128"):
        plans_by_level(SWEEP, resolved(set=("num_heads=5",)), shapes)
    plans = plans_by_level(SWEEP, resolved(), shapes)
    assert list(plans) == [2, 4, 8, 16]
    assert all(plan is not None and plan.num_steps > 0 for plan in plans.values())
