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
    # The last asks for 10 TiB at once.
    grid={"batch_size": Choice((50, 64, 10**12)), "learning_rate": Choice((1e-3, 1e30)), "patch_size": Choice((5, 8))},
    base={"clip_norm": 1e30},
    budget=1e9,
    seeds=1,
    answer=answer,
)

if __name__ == "__main__":
    run_and_exit(SWEEP)
