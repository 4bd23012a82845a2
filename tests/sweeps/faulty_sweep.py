"""A sweep some of whose trials cannot end well; run as a program by the tests."""

from sweeps.patch_size import answer
from sweeps.question import Sweep
from sweeps.runner import run_and_exit
from sweeps.space import Choice

SWEEP = Sweep(
    name="faulty",
    question="Which trials survive?",
    description=__doc__,
    factor="batch_size",
    # Fine, or not: a rate that diverges, a patch that does not divide the picture, an MLP of 10 TiB.
    grid={
        "batch_size": Choice((50,)),
        "learning_rate": Choice((1e-3, 1e30)),
        "mlp_ratio": Choice((2.0, 1e10)),
        "patch_size": Choice((8, 5)),
    },
    base={"clip_norm": 1e30},
    budget=1e9,
    seeds=1,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
