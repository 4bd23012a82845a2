"""What does patch size buy?

A ViT cuts the picture into squares; halving their side makes four times the tokens, and a picture four times as dear or
more. So the sizes are compared twice: at equal training FLOPs, which is what one pays, and at equal pictures seen.

    python sweeps/patch_size.py --budget 1e14            # equal FLOPs
    python sweeps/patch_size.py --epochs 3               # equal pictures seen
    python sweeps/patch_size.py --dataset shapes --budget 1e12 --set embed_dim=64 depth=2 learning_rate=3e-3
    python sweeps/patch_size.py --resume latest

More flags: --search optuna --scheduler asha also searches learning rate and weight decay for each size.
"""

from collections.abc import Sequence

from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform


def answer(levels: Sequence[Level]) -> str:
    """The winner (in validation), how far its test accuracy is from the others', and whether chance explains it."""
    best, *others = levels
    text = f"Patch size {best.value} is best: {_accuracy(best)} test accuracy"
    if not others:
        return f"{text}; no other size could be trained."
    second, last = others[0], others[-1]
    spread = max(best.test_std, second.test_std)  # NaN, so never below the lead, where there is one seed
    doubt = "" if best.test_mean - second.test_mean > 2 * spread else f" (chance alone could explain it, n={best.n})"
    text += f", {_distance(best, second)} patch size {second.value}{doubt}"
    if last is not second:
        text += f" and {_distance(best, last)} patch size {last.value}"
    return text + "."


def _distance(level: Level, other: Level) -> str:
    points = 100 * (level.test_mean - other.test_mean)
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def _accuracy(level: Level) -> str:
    spread = f" ± {100 * level.test_std:.1f}" if level.n > 1 else ""
    return f"{100 * level.test_mean:.1f}{spread}%"


SWEEP = Sweep(
    name="patch_size",
    question="What does patch size buy?",
    description=__doc__,
    factor="patch_size",
    grid={"patch_size": Choice((2, 4, 8, 16))},
    search={"learning_rate": Uniform(5e-4, 5e-3, log=True), "weight_decay": Uniform(1e-3, 0.3, log=True)},
    base={"batch_size": 128, "learning_rate": 2e-3},
    budget=1e14,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
