"""What is gained where a trial keeps the memory that it has freed (`sweeps.cluster.KEEPING_MEMORY`)?

    python -m benchmarks.kept_memory
    python -m benchmarks.kept_memory --rounds 5 --output docs/records/benchmarks/kept_memory.json

Training steps of a ViT (width 128, depth 6, patch 4, batch 256, compiled, one thread) in processes of their own, by
turns with that environment, as trials have it, and without, as Python comes; in a thread that is not the first, as Tune
runs them. A ratio is that of one round, and the median is judged.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.record import Verdict, conclude, spread
from core.data import subset
from core.models import ViTConfig
from core.readers import load_dataset
from core.runtime import import_torchvision
from core.train import EpochReport, train
from core.train_config import TrainConfig
from sweeps.cluster import KEEPING_MEMORY

_WARM_UP = 2
# That it is worth having at all.
_TARGET = 1.02


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    rounds: int = 5
    """How often both take their turn."""
    steps: int = 20
    """Steps that are timed in a turn."""
    turn: bool = False
    """Train once, here, and print what a step took: what the benchmark asks of its processes."""
    output: Path | None = None
    """Write a JSON record here."""


def main(settings: Settings) -> None:
    """Compare both."""
    if settings.turn:
        worker = threading.Thread(target=lambda: print(json.dumps(_train(settings.steps))))
        worker.start()
        worker.join()
        return
    rounds = []
    for number in range(settings.rounds):
        freed, kept = (_in_a_process(settings.steps, keeps=keeps) for keeps in (False, True))
        rounds.append({"freed": freed, "kept": kept})
        print(
            f"round {number + 1}: {freed['seconds']:.3f} and {kept['seconds']:.3f} s a step, "
            f"{freed['faults']:,.0f} and {kept['faults']:,.0f} page faults",
            flush=True,
        )
    ratio = spread([row["freed"]["seconds"] / row["kept"]["seconds"] for row in rounds])
    print(f"\n{ratio.text()} times as fast where memory is kept")
    claim = "speed of a training step where memory is kept"
    verdicts = [Verdict(claim=claim, measured=ratio.median, target=_TARGET, unit="x")]
    figures = {"rounds": rounds, "ratio": dataclasses.asdict(ratio)}
    conclude("kept_memory", settings, figures, verdicts, settings.output)


def _in_a_process(steps: int, *, keeps: bool) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING_MEMORY}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kept_memory", "--turn", "--steps", str(steps)],
        env={**environment, **(KEEPING_MEMORY if keeps else {})},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _train(steps: int) -> dict[str, float]:
    """Wall seconds and page faults of a step."""
    torch.set_num_threads(1)
    import_torchvision()
    data = load_dataset("shapes", None)
    data = dataclasses.replace(data, val=subset(data.val, 1))  # it is evaluated after every step
    marks = []

    def mark(_: EpochReport) -> None:
        marks.append((time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt))

    model, in_all = ViTConfig(num_classes=len(data.class_names)), _WARM_UP + steps
    train(TrainConfig(model=model, images=256 * in_all, reports=in_all, compile=True), data, mark)
    (began, faults), (ended, more_faults) = marks[_WARM_UP - 1], marks[-1]
    return {"seconds": (ended - began) / steps, "faults": (more_faults - faults) / steps}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
