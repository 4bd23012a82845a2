"""What is gained where a worker keeps the memory that it has freed (`nodes.joining.KEEPING_MEMORY`)?

    python -m benchmarks.kept_memory
    python -m benchmarks.kept_memory --rounds 5 --cases step demo --output docs/records/benchmarks/kept_memory.json

The same work in processes of its own, by turns with that environment, as our workers have it, and without, as Python
comes; in a thread that is not the first, as with Ray. `step`: training steps of a ViT, compiled. `demo`, `full-size`:
pictures segmented for three prompts, by the carried weights and by random ones of the public checkpoints' size. Speeds
are of one core. A ratio is that of one round, and the median is judged.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.full_size import FULL_SIZE, FullSize, chosen
from benchmarks.record import Verdict, conclude, spread
from core.data import subset
from core.models import ViTConfig
from core.readers import load_dataset
from core.runtime import import_torchvision
from core.segment.scenes import generate_scene, render
from core.train import EpochReport, train
from core.train_config import TrainConfig
from nodes.joining import KEEPING_MEMORY

Case = Literal["step", "demo", "full-size"]
_PROMPTS = ["red circle", "star", "blue square"]
_PICTURES_A_CALL = 4
_WARM_UP = 2
# That it is worth having at all.
_TARGET = 1.05


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    rounds: int = 5
    """How often both take their turn at each case."""
    calls: int = 8
    """Steps, or calls with four pictures each, that are timed in a turn."""
    cases: tuple[Case, ...] = ("step", "demo", "full-size")
    """What is done."""
    turn: Case | None = None
    """Do this case once, here, and print what it took: what the benchmark asks of its processes."""
    output: Path | None = None
    """Write a JSON record here."""


def main(settings: Settings) -> None:
    """Compare both, case by case."""
    if settings.turn is not None:
        worker = threading.Thread(target=lambda: print(json.dumps(_turn(settings))))
        worker.start()
        worker.join()
        return
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        models = FullSize(Path(folder) / "models").save() if "full-size" in settings.cases else None
        for number in range(settings.rounds):
            for case in settings.cases:
                freed, kept = (_in_a_process(settings, case, models, keeps=keeps) for keeps in (False, True))
                rounds.append({"case": case, "freed": freed, "kept": kept})
                print(
                    f"round {number + 1}, {case}: {freed['seconds']:.2f} and {kept['seconds']:.2f} s a call, "
                    f"{freed['faults']:,.0f} and {kept['faults']:,.0f} page faults",
                    flush=True,
                )
    ratios = {
        case: spread([row["freed"]["seconds"] / row["kept"]["seconds"] for row in rounds if row["case"] == case])
        for case in settings.cases
    }
    print()
    for case, ratio in ratios.items():
        print(f"{case}: {ratio.text()} times as fast where memory is kept")
    verdicts = [
        Verdict(claim=f"speed where memory is kept, {case}", measured=ratio.median, target=_TARGET, unit="x")
        for case, ratio in ratios.items()
    ]
    figures = {"rounds": rounds, "ratios": {case: dataclasses.asdict(ratio) for case, ratio in ratios.items()}}
    conclude("kept_memory", settings, figures, verdicts, settings.output)


def _in_a_process(settings: Settings, case: Case, models: FullSize | None, *, keeps: bool) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in (FULL_SIZE, *KEEPING_MEMORY)}
    if models is not None and case == "full-size":
        environment[FULL_SIZE] = str(models.folder)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kept_memory", "--turn", case, "--calls", str(settings.calls)],
        env={**environment, **(KEEPING_MEMORY if keeps else {})},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _turn(settings: Settings) -> dict[str, float]:
    """Wall seconds and page faults of a call."""
    torch.set_num_threads(1)
    marks = []

    def mark() -> None:
        marks.append((time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt))

    if settings.turn == "step":
        _train(_WARM_UP + settings.calls, mark)
    else:
        call = _segmentation()
        for _ in range(_WARM_UP + settings.calls):
            call()
            mark()
    (began, faults), (ended, more_faults) = marks[_WARM_UP - 1], marks[-1]
    return {"seconds": (ended - began) / settings.calls, "faults": (more_faults - faults) / settings.calls}


def _train(steps: int, mark: Callable[[], None]) -> None:
    import_torchvision()
    data = load_dataset("shapes", None)
    data = dataclasses.replace(data, val=subset(data.val, 1))  # evaluated after every step
    config = TrainConfig(
        model=ViTConfig(num_classes=len(data.class_names)), images=256 * steps, reports=steps, compile=True
    )

    def on_step(_: EpochReport) -> None:
        mark()

    train(config, data, on_step)


def _segmentation() -> Callable[[], object]:
    segmenter, options = chosen()
    images = [render(generate_scene(seed))[0] for seed in range(_PICTURES_A_CALL)]
    return lambda: segmenter.segment(images, [_PROMPTS] * len(images), options)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
