"""The sweeps that come as files: every level can be trained, within its budget, and none has a mistyped field."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

from core.carried import CARRIED, checkpoint_folder
from core.checkpoint import load
from core.data import Dataset
from core.distill import WeakTeacherWarning
from core.flops import forward_flops_per_image
from core.models import HybridConfig, ViTConfig
from core.readers import CIFAR10_CLASSES
from nodes.command import UsageError
from sweeps.flags import Flags
from sweeps.question import Sweep, plans_by_level, resolve, with_defaults
from sweeps.space import Choice
from sweeps.teacher import with_teacher
from sweeps.trial import folder_name

SWEEPS = {
    name: importlib.import_module(f"sweeps.{name}").SWEEP
    for name in ("patch_size", "architecture", "block_design", "augmentation", "kd_temperature")
}


def resolved(sweep: Sweep, **flags: Any) -> Any:
    return resolve(sweep, with_defaults(Flags(**flags), sweep))


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("smoke", [False, True])
def test_every_level_can_be_trained_and_keeps_its_budget(
    shapes: Dataset, tmp_path: Path, name: str, smoke: bool
) -> None:
    sweep = SWEEPS[name]
    flags = with_defaults(Flags(dataset="shapes", smoke=True, budget=None if smoke else 1e13), sweep)
    result = with_teacher(resolve(sweep, flags), flags, shapes, tmp_path)
    plans = plans_by_level(sweep, result, shapes)
    assert list(plans) == list(sweep.grid[sweep.factor].values)
    for level, plan in plans.items():
        assert plan is not None, level
        if not smoke:
            assert plan.train_flops(plan.num_steps) == pytest.approx(1e13, rel=0.05)


@pytest.mark.parametrize("name", SWEEPS)
def test_searches_draw_settings_that_can_be_trained(shapes: Dataset, tmp_path: Path, name: str) -> None:
    sweep = SWEEPS[name]
    flags = with_defaults(Flags(dataset="shapes", smoke=True, search="random", num_samples=12, seeds=1), sweep)
    result = with_teacher(resolve(sweep, flags), flags, shapes, tmp_path)
    for point in result.points:
        result.recipe.configure(point, shapes)
    if sweep.search_levels:
        assert {point[sweep.factor] for point in result.points} <= set(sweep.search_levels)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_names_of_levels_are_fit_for_folders_and_the_help_says_how_to_start(name: str) -> None:
    sweep = SWEEPS[name]
    assert all(not set(str(level)) & set(" /,") for level in sweep.grid[sweep.factor].values)
    assert f"python sweeps/{name}.py --dataset shapes" in (sweep.description or "")
    assert "--resume latest" in (sweep.description or "")


def test_rows_differ_in_what_they_say_and_controls_in_the_transformer_alone(shapes: Dataset) -> None:
    recipe = resolved(SWEEPS["architecture"], set=("teacher=somewhere",)).recipe
    models = {row: recipe.configure({"row": row, "seed": 0}, shapes).model for row in recipe.bundles}
    assert models["vit-regularised"] == dataclasses.replace(models["vit"], drop_path_rate=0.05)
    assert models["distilled"] == models["explicit"]
    for row, control in (("cnn-encoder", "cnn"), ("resnet-transformer", "resnet-trunk")):
        whole, alone = models[row], models[control]
        assert isinstance(whole, HybridConfig) and isinstance(alone, HybridConfig)
        assert alone.blocks == "none" != whole.blocks
        assert (whole.trunk, whole.trunk_width, whole.trunk_whiten) == (alone.trunk, alone.trunk_width, True)


def test_each_recipe_leaves_out_or_has_what_its_name_says(shapes: Dataset) -> None:
    recipe = resolved(SWEEPS["augmentation"]).recipe
    everything, nothing = (recipe.configure({"recipe": name, "seed": 0}, shapes) for name in ("all", "bare"))
    assert dataclasses.asdict(nothing.augmentation) | {"crop_padding": 0, "flip": False} == dataclasses.asdict(
        nothing.augmentation
    )
    without = recipe.configure({"recipe": "without-mixup", "seed": 0}, shapes)
    assert dataclasses.replace(everything, mixup_alpha=0.0) == without
    only = recipe.configure({"recipe": "only-mixup", "seed": 0}, shapes)
    assert dataclasses.replace(nothing, mixup_alpha=everything.mixup_alpha) == only


def test_what_is_set_goes_before_a_levels_own_and_what_a_point_has_before_both(shapes: Dataset) -> None:
    result = resolved(SWEEPS["architecture"], set=("embed_dim=64", "trunk_width=16", "teacher=x"), vary=("depth=2,3",))
    assert len(result.points) == 10 * 2 * 2
    config = result.recipe.configure({"row": "vit", "depth": 3, "seed": 1}, shapes)
    assert isinstance(config.model, ViTConfig)
    assert (config.model.embed_dim, config.model.depth, config.seed) == (64, 3, 1)  # no ViT has a `trunk_width`


def test_a_setting_that_a_trials_model_lacks_is_an_error_where_it_is_varied(shapes: Dataset) -> None:
    recipe = resolved(SWEEPS["patch_size"], set=("model=resnet",)).recipe
    with pytest.raises(ValueError, match="resnet has no field patch_size"):
        recipe.configure({"patch_size": 4, "seed": 0}, shapes)


def test_levels_can_be_picked_and_meaningless_repetitions_are_left_out() -> None:
    flags = {"set": ("teacher=x",), "vary": ("standardise_logits=false,true",), "seeds": 1}
    points = resolved(SWEEPS["kd_temperature"], **flags).points
    alone = [point for point in points if point["distillation"] == "no-teacher"]
    assert len(alone) == 1 and len(points) == 2 + 5 * 2 * 2
    picked = resolved(SWEEPS["kd_temperature"], set=("teacher=x",), vary=("distillation=no-teacher,T4",)).points
    assert {point["distillation"] for point in picked} == {"no-teacher", "T4"}


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [
        ("kd_temperature", {"set": ("temperature=3",)}, "--set temperature: no-teacher and T1 differ in nothing else"),
        ("kd_temperature", {"set": ("teacher=x",), "vary": ("temperature=3,6",)}, "--vary temperature: no-teacher and"),
        ("augmentation", {"set": ("mixup_alpha=0.4",)}, "--set mixup_alpha: all and without-mixup .* recipe=all"),
        ("augmentation", {"vary": ("flip=true,alternating",)}, "--vary flip: all and without-flip"),
        ("block_design", {"set": ("mlp_ratio=3",)}, "--set mlp_ratio: reference and mlp-1x"),
        ("architecture", {"set": ("qk_norm=true", "flip=true")}, "--set flip, --set qk_norm: vit and explicit"),
    ],
)
def test_what_would_make_two_levels_the_same_is_refused(name: str, flags: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        resolved(SWEEPS[name], **flags)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("architecture", {"set": ("depth=9", "trunk_width=64", "teacher=x")}),
        ("augmentation", {"set": ("model=hybrid", "embed_dim=128")}),
        ("augmentation", {"set": ("mixup_alpha=0.4",), "search": "random"}),
        ("augmentation", {"vary": ("recipe=all,bare", "mixup_alpha=0.2,0.4")}),
        ("kd_temperature", {"set": ("teacher=x",), "vary": ("distillation=T4", "temperature=3,6")}),
    ],
)
def test_what_leaves_the_levels_different_may_be_set(name: str, flags: dict[str, Any]) -> None:
    assert resolved(SWEEPS[name], **flags).points


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("row=vit,vgg", "--vary row: no vgg; there are: vit, vit-regularised"),
        ("widht=1,2", "--vary widht: unknown; there are:"),
        ("seed=1,2", "--vary seed: another flag decides it"),
    ],
)
def test_what_cannot_be_varied_is_named(vary: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolved(SWEEPS["architecture"], vary=(vary,))


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_search_draws_from_the_levels_that_are_named(search: str) -> None:
    flags = {"search": search, "set": ("teacher=x",), "seeds": 1}
    result = resolved(SWEEPS["kd_temperature"], vary=("distillation=T2,T4",), **flags)
    assert result.space["distillation"] == Choice(("T2", "T4"))
    assert {point["distillation"] for point in result.points} == {"T2", "T4"}
    with pytest.raises(UsageError, match=f"--search {search} cannot use no-teacher; it draws from: T1, T2, T4, T8"):
        resolved(SWEEPS["kd_temperature"], vary=("distillation=no-teacher,T4",), **flags)


def test_every_trial_has_a_folder_of_its_own_whatever_its_settings_are_called(tmp_path: Path) -> None:
    assert (
        folder_name({"patch_size": 4, "learning_rate": 0.002, "seed": 1}) == "learning_rate=0.002,patch_size=4,seed=1"
    )
    with_slashes = [{"teacher": f"results/a{sign}best", "seed": 0} for sign in "/_"]
    drawn = resolved(SWEEPS["augmentation"], search="random").points
    names = [folder_name(point) for point in (*with_slashes, *drawn)]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / f"{name},0123abcd").mkdir()


def test_the_classifier_that_the_project_carries_teaches_where_nobody_is_named(shapes: Dataset, tmp_path: Path) -> None:
    train = dataclasses.replace(shapes.train, class_names=CIFAR10_CLASSES)
    data = dataclasses.replace(shapes, train=train)
    for name in ("architecture", "kd_temperature"):
        flags = with_defaults(Flags(budget=1e14), SWEEPS[name])
        with pytest.warns(WeakTeacherWarning) as told:
            result = with_teacher(resolve(SWEEPS[name], flags), flags, data, tmp_path)
            plans = plans_by_level(SWEEPS[name], result, data)
        (warning,) = told
        assert "the teacher in carried reached 89.5% in validation" in str(warning.message)
        level = "distilled" if name == "architecture" else "T4"
        carried = load(checkpoint_folder(CARRIED))
        assert plans[level].teacher_flops_per_image == forward_flops_per_image(carried.model, (3, 32, 32))


def test_distilling_without_a_teacher_says_how_to_get_one(shapes: Dataset, tmp_path: Path) -> None:
    for sweep, given in ((SWEEPS["patch_size"], ("temperature=2",)), (SWEEPS["kd_temperature"], ())):
        flags = with_defaults(Flags(set=given), sweep)
        with pytest.raises(UsageError, match=r"teacher.*--set teacher=FOLDER.*--vary row=teacher"):
            with_teacher(resolve(sweep, flags), flags, shapes, tmp_path)
    flags = with_defaults(Flags(vary=(f"teacher={tmp_path}/a,{tmp_path}/b",)), sweep)
    with pytest.raises(UsageError, match="is not a checkpoint folder"):
        with_teacher(resolve(sweep, flags), flags, shapes, tmp_path)
