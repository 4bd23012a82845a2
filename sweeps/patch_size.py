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

from sweeps.answer import ranking
from sweeps.question import Sweep
from sweeps.results import Level
from sweeps.runner import run_and_exit
from sweeps.space import Choice, Uniform


def answer(levels: Sequence[Level]) -> str:
    """The winner, and how far it is from the others."""
    return ranking(levels, "patch size")


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
