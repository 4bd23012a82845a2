"""At which temperature should a ViT learn from its teacher, and does it learn more than without?

Every temperature is tried with every weight of the teacher's word, beside the same ViT without a teacher. The budget is
the student's; --vary count_teacher=false,true also has the arms where it must pay for the teacher's forward passes (not
for the teacher's training, which the report of its own sweep gives). The learning curves show accuracy against pictures
seen, with a teacher and without.

    python sweeps/kd_temperature.py --set teacher=results/architecture/teacher/best
    python sweeps/kd_temperature.py --vary teacher=results/a/best,results/b/best       # which teacher?
    python sweeps/kd_temperature.py --set teacher=results/a/best --vary count_teacher=false,true
    python sweeps/kd_temperature.py --set teacher=results/a/best standardise_logits=true feature_weight=1
    python sweeps/kd_temperature.py --dataset shapes --smoke                           # with a tiny teacher of its own
    python sweeps/kd_temperature.py --resume latest
"""

from collections.abc import Sequence
from typing import Any

from sweeps.answer import comparison, doubt, ranking
from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform

TEMPERATURES: dict[str, dict[str, Any]] = {
    "no-teacher": {"temperature": None},
    **{f"T{temperature}": {"temperature": float(temperature)} for temperature in (1, 2, 4, 8)},
}


def answer(levels: Sequence[Level]) -> str:
    """The best temperature, which others chance alone could part from it, and what the teacher is worth."""
    best = next((level for level in levels if level.value != "no-teacher"), levels[0])
    others = [level for level in levels if level.value not in ("no-teacher", best.value)]
    alike = [level.value for level in others if doubt(levels, best, level)]
    flat = f" No clear difference from {best.value}: {', '.join(alike)}." if alike else ""
    gain = comparison(levels, best.value, "no-teacher") if best.value != "no-teacher" else None
    return ranking(levels, "distillation") + flat + (f" {gain}" if gain else "")


SWEEP = Sweep(
    name="kd_temperature",
    question="At which temperature does a teacher help most?",
    description=__doc__,
    factor="distillation",
    grid={"distillation": Choice(tuple(TEMPERATURES)), "distill_weight": Choice((0.5, 0.9))},
    bundles=TEMPERATURES,
    irrelevant={
        "no-teacher": ("distill_weight", "teacher", "count_teacher", "standardise_logits", "feature_weight"),
    },
    search={"distill_weight": Uniform(0.3, 1.0), "standardise_logits": Choice((False, True))},
    search_levels=tuple(level for level in TEMPERATURES if level != "no-teacher"),
    reference="no-teacher",
    base={
        **{"batch_size": 256, "learning_rate": 2e-3, "pooling": "mean", "layer_scale": None},
        **{"zero_init_residual": True, "target_accuracy": 0.9},
    },
    budget=1e14,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
