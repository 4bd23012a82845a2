"""What is each augmentation worth, at this budget?

`all` has every technique; each `without-...` leaves one out, so that its distance to `all` is what that technique is
worth beside the others, with its interval. `bare` has not one of them, and each `only-...` has that one alone: what
helps alone need not help beside the rest. The settings are weak: at few passes strong regularisation costs more than it
buys.

    python sweeps/augmentation.py --budget 1e14 --seeds 3
    python sweeps/augmentation.py --vary recipe=all,bare,without-mixup,without-cutmix
    python sweeps/augmentation.py --set model=hybrid embed_dim=128 --budget 1e14       # for another model
    python sweeps/augmentation.py --search optuna --scheduler asha --num-samples 40    # how strong should each be?
    python sweeps/augmentation.py --dataset shapes --smoke
    python sweeps/augmentation.py --resume latest
"""

import math
from collections.abc import Sequence
from typing import Any

from sweeps.answer import ranking
from sweeps.question import Sweep
from sweeps.results import Level, differences
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform

TECHNIQUES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: with it, without it
    "crop": ({"crop_padding": 4}, {"crop_padding": 0}),
    "flip": ({"flip": True}, {"flip": False}),
    "label-smoothing": ({"label_smoothing": 0.1}, {"label_smoothing": 0.0}),
    "mixup": ({"mixup_alpha": 0.2}, {"mixup_alpha": 0.0}),
    "cutmix": ({"cutmix_alpha": 0.5}, {"cutmix_alpha": 0.0}),
    "color-jitter": ({"color_jitter": 0.2}, {"color_jitter": 0.0}),
    "random-erasing": ({"random_erasing": 0.25}, {"random_erasing": 0.0}),
    "drop-path": ({"drop_path_rate": 0.05}, {"drop_path_rate": 0.0}),
}


def _recipe(present: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, (with_it, without_it) in TECHNIQUES.items():
        fields |= with_it if name in present else without_it
    return fields


_ALL = tuple(TECHNIQUES)
RECIPES: dict[str, dict[str, Any]] = {
    "all": _recipe(_ALL),
    "bare": _recipe(()),
    **{f"without-{name}": _recipe([other for other in _ALL if other != name]) for name in _ALL},
    **{f"only-{name}": _recipe([name]) for name in _ALL},
    "flip-alternating": {**_recipe(_ALL), "flip": "alternating"},
    "trivial-augment": {**_recipe(["crop", "flip", "label-smoothing"]), "trivial_augment": True},
}


def answer(levels: Sequence[Level]) -> str:
    """What every technique is worth beside the others, most first, and the best recipe."""
    worth = {
        str(difference.value).removeprefix("without-"): difference
        for difference in differences(levels, "all")
        if str(difference.value).startswith("without-")
    }
    pieces = [
        f"{name} {-d.points:+.1f} ({-d.high:+.1f} to {-d.low:+.1f})"
        if math.isfinite(d.low)
        else f"{name} {-d.points:+.1f}"
        for name, d in sorted(worth.items(), key=lambda item: item[1].points)
    ]
    told = f" Worth beside the others, in points of test accuracy: {', '.join(pieces)}." if pieces else ""
    return ranking(levels, "recipe") + told


SWEEP = Sweep(
    name="augmentation",
    question="What is each augmentation worth?",
    description=__doc__,
    factor="recipe",
    grid={"recipe": Choice(tuple(RECIPES))},
    bundles=RECIPES,
    search={
        "crop_padding": Choice((0, 2, 4)),
        "flip": Choice((True, "alternating")),
        "label_smoothing": Uniform(0.0, 0.2),
        "mixup_alpha": Choice((0.0, 0.1, 0.2, 0.4, 0.8)),
        "cutmix_alpha": Choice((0.0, 0.25, 0.5, 1.0)),
        "color_jitter": Uniform(0.0, 0.4),
        "random_erasing": Uniform(0.0, 0.5),
        "trivial_augment": Choice((False, True)),
        "drop_path_rate": Uniform(0.0, 0.2),
    },
    search_levels=("all",),
    reference="all",
    base={"batch_size": 256, "learning_rate": 2e-3, "pooling": "mean"},
    budget=1e14,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
