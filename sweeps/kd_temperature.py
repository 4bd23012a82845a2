"""At which temperature should a ViT learn from its teacher, and does it learn more than without?

Every temperature is tried with every weight of the teacher's word, beside the same ViT without a teacher, and beside a
net that has convolutions of its own under its blocks (resnet-transformer, as in the ladder) in place of a teacher that
has them. The teacher is the classifier that the project carries, unless one is named. The budget is the student's, but
for `T4-counted`, which pays for its teacher's forward passes out of it (not for the teacher's training, which the
report of its own sweep gives). The learning curves show accuracy against pictures seen, with a teacher and without.

    python sweeps/kd_temperature.py --budget 1e14 --seeds 3
    python sweeps/kd_temperature.py --set teacher=results/architecture/teacher/best    # another teacher
    python sweeps/kd_temperature.py --vary teacher=results/a/best,results/b/best       # which teacher?
    python sweeps/kd_temperature.py --set teacher=results/a/best standardise_logits=true feature_weight=1
    python sweeps/kd_temperature.py --dataset shapes --smoke                           # with a tiny teacher of its own
    python sweeps/kd_temperature.py --resume latest
"""

from collections.abc import Sequence
from typing import Any

from core.carried import CARRIED
from sweeps.answer import comparison, is_clear, ranking
from sweeps.architecture import ROWS
from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform

_TEMPERATURES = {f"T{temperature}": {"temperature": float(temperature)} for temperature in (1, 2, 4, 8)}
_COUNTED, _HYBRID = "T4-counted", "resnet-transformer"
# Of the ladder's row the net alone: what it is trained with is the same for all arms.
_NET = ("model", "trunk", "trunk_width", "trunk_stages", "blocks", "embed_dim", "depth", "num_heads", "mlp_ratio")
ARMS: dict[str, dict[str, Any]] = {
    "no-teacher": {"temperature": None},
    **_TEMPERATURES,
    _COUNTED: {"temperature": 4.0, "count_teacher": True},
    _HYBRID: {"temperature": None, **{field: ROWS[_HYBRID][field] for field in _NET}},
}
_OF_THE_TEACHER = ("distill_weight", "teacher", "standardise_logits", "feature_weight")


def answer(levels: Sequence[Level]) -> str:
    """The best temperature, which others chance alone could part from it, and what the teacher is worth."""
    distilled = [level for level in levels if level.value in _TEMPERATURES]
    sentences = [ranking(levels, "distillation")]
    if distilled:
        best, *others = distilled
        if alike := [level.value for level in others if not is_clear(levels, best, level)]:
            sentences.append(f"No clear difference from {best.value}: {', '.join(alike)}.")
        pairs = [(arm, other) for arm in (best.value, _COUNTED) for other in ("no-teacher", _HYBRID)]
        gains = [comparison(levels, *pair) for pair in pairs]
        sentences += [gain for gain in gains if gain]
    return " ".join(sentences)


SWEEP = Sweep(
    name="kd_temperature",
    question="At which temperature does a teacher help most?",
    description=__doc__,
    factor="distillation",
    grid={"distillation": Choice(tuple(ARMS)), "distill_weight": Choice((0.5, 0.9))},
    bundles=ARMS,
    irrelevant={"no-teacher": _OF_THE_TEACHER, _HYBRID: _OF_THE_TEACHER},
    search={"distill_weight": Uniform(0.3, 1.0), "standardise_logits": Choice((False, True))},
    search_levels=tuple(_TEMPERATURES),
    reference="no-teacher",
    base={
        "batch_size": 256,
        "learning_rate": 2e-3,
        "pooling": "mean",
        "layer_scale": None,
        "zero_init_residual": True,
        "teacher": CARRIED,
        "target_accuracy": 0.9,
    },
    budget=1e14,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
