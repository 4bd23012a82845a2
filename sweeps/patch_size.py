"""What does patch size buy?

A ViT cuts the picture into squares; halving their side makes four times the tokens, and a picture four times as dear or
more. So the sizes are compared twice: at equal training FLOPs, which is what one pays, and at equal pictures seen.

    python sweeps/patch_size.py --budget 1e14            # equal FLOPs
    python sweeps/patch_size.py --epochs 3               # equal pictures seen
    python sweeps/patch_size.py --dataset shapes --budget 4e12 --set embed_dim=64 depth=4
    python sweeps/patch_size.py --resume latest

More flags: --search optuna --scheduler asha also searches learning rate and weight decay for each size.
"""

from collections.abc import Sequence

from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform


def answer(levels: Sequence[Level]) -> str:
    """The winner, its lead over the runner-up in points, and whether seeds could explain the lead."""
    best = levels[0]
    text = f"Patch size {best.value} is best: {_accuracy(best)} test accuracy"
    if len(levels) == 1:
        return f"{text}; no other size could be trained."
    second, worst = levels[1], levels[-1]
    lead = 100 * (best.test_mean - second.test_mean)
    spread = 100 * max(best.test_std, second.test_std)  # NaN, so never below the lead, where there is one seed
    doubt = "" if lead > 2 * spread else f" (which chance alone could explain, n={best.n})"
    text += f", {lead:.1f} points above patch size {second.value}{doubt}"
    if len(levels) > 2:
        text += f" and {100 * (best.test_mean - worst.test_mean):.1f} above patch size {worst.value}"
    return text + "."


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
