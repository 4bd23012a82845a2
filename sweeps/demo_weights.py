"""Train the weights of the `demo` preset again, from nothing, on generated scenes.

    python sweeps/demo_weights.py clipseg --work /tmp/demo                           # 2 to 3 hours on two cores
    python sweeps/demo_weights.py sam2 --work /tmp/demo                              # 40 minutes on one core
    python sweeps/demo_weights.py clipseg --work /tmp/try --output /tmp/try --steps 100

Stopped at any moment and started again with the same words, it goes on from the last checkpoint in --work.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import tyro

from core.segment.demo_training import WEIGHTS, train_demo


def main(
    model: Annotated[Literal["clipseg", "sam2"], tyro.conf.Positional],
    work: Path,
    output: Path = WEIGHTS,
    steps: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Train the weights of the `demo` preset again, from nothing, on generated scenes.

    Args:
        model: which of the two.
        work: folder for checkpoints and the log.
        output: the weights are written to a folder here, at every checkpoint.
        steps: of training, 12,000 if not given, and 1,600 for sam2; the learning rate falls to zero at the end.
        batch_size: scenes per step; 32 if not given, and 16 for sam2.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_demo(model, work=work, output=output, steps=steps, batch_size=batch_size)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
