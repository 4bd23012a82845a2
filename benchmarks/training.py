"""How fast is a training step, against timm's model trained the usual way and against what the machine can do?

    python -m benchmarks.training
    python -m benchmarks.training --rounds 3 --seconds 2 --batch-size 64 --output results/benchmarks/training.json

Compared, on the same pictures and for a ViT of the same shape (the program checks that the parameters are as many):

- ours: `core.train.train` itself, so with augmentation, bf16, torch.compile, gradient clip, AdamW, weight average.
- usual: timm's VisionTransformer, eager float32, AdamW, fed by a DataLoader with worker processes and torchvision's
  transforms on PIL pictures (crop with padding 4, flip, to tensor, normalise). No clip and no weight average.
- tuned: the same with bf16 autocast and torch.compile. What is left between it and ours is data and model code.

Every round runs the three for some seconds each, one after the other, with large bf16 matrix products before and after
ours. Ratios are taken within a round, so that other work on the machine, which slows everything, cancels in part; where
our turns had to wait for the cores, the program says so, and its figures are no measure of an idle machine. Compiling
and warm-up are not timed. A target is met if the median over the rounds reaches it; minimum and maximum show how sure
that is. The profile at the end says what the time goes to; it costs some speed and so is not part of any figure.
"""

import contextlib
import cProfile
import dataclasses
import pstats
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import Verdict, conclude, spread
from benchmarks.timm_training import TimmTraining, wait_for
from core.data import Dataset, subset
from core.models import ViTConfig
from core.readers import load_dataset
from core.runtime import import_torchvision, resolve_device
from core.train import TrainConfig, plan, train
from core.train_config import Plan

STEPS_A_CHUNK = 4
_MATRIX_SIZES = (1024, 1536, 2048)
_TARGETS = {"usual": 3.0, "tuned": 1.3}
_TARGET_SHARE = 0.35
_IDLE = 0.9

# Parts of our step by file and function, as cProfile names them; what is left of `train_until` is the forward pass.
_WHOLE = ("core/train.py", "train_until")
_PARTS = {
    "data and augmentation": ("core/batches.py", "at"),
    "backward": ("torch/_tensor.py", "backward"),
    "gradient clip": ("torch/nn/utils/clip_grad.py", "clip_grad_norm_"),
    "AdamW": ("torch/optim/adam.py", "step"),
    "weight average": ("torch/optim/swa_utils.py", "update_parameters"),
}
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    rounds: int = 5
    """How many times all contenders take their turn."""
    seconds: float = 4.0
    """How long a turn is timed, at least."""
    batch_size: int = 256
    """Pictures a step, for all contenders."""
    dataset: Literal["shapes", "cifar10", "cifar100"] = "shapes"
    """The pictures; `shapes` is generated here."""
    data_root: Path | None = None
    """Folder with CIFAR."""
    num_workers: int = 2
    """Worker processes of the other contenders' DataLoader."""
    threads: int | None = None
    """Threads of PyTorch, for all contenders, such as the 1 that a trial of a sweep has; None for all cores."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    output: Path | None = None
    """Write a JSON record of all rounds here."""


def bf16_rate(device: torch.device, seconds: float = 0.5) -> float:
    """FLOP/s of bf16 matrix products, the best of a few sizes."""
    best = 0.0
    for size in _MATRIX_SIZES:
        left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
        torch.mm(left, right)
        wait_for(device)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            torch.mm(left, right)
            wait_for(device)
            count += 1
        best = max(best, 2 * size**3 * count / (time.perf_counter() - started))
    return best


def run_rounds(settings: Settings, data: Dataset, planned: Plan, figures: dict[str, Any]) -> Iterator[None]:
    """The script of the benchmark. Each `yield` lets our own training go on for `STEPS_A_CHUNK` steps."""
    device = resolve_device(settings.device)
    yield  # compiles
    yield  # warm
    others = {
        name: TimmTraining(
            data,
            device,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            seconds=settings.seconds,
            tuned=name == "tuned",
        )
        for name in _TARGETS
    }
    if {other.num_params for other in others.values()} != {planned.num_params}:
        raise RuntimeError(f"the models differ: ours has {planned.num_params} parameters, timm's {others}")
    for number in range(settings.rounds):
        before = bf16_rate(device)
        started, processor, num_images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - started < settings.seconds:
            yield
            num_images += STEPS_A_CHUNK * settings.batch_size
        elapsed = time.perf_counter() - started
        row = {"ours": num_images / elapsed}
        row["share_of_cores"] = (time.process_time() - processor) / elapsed / torch.get_num_threads()
        # On both sides of our turn, since other work on the machine comes and goes.
        rate = (before + bf16_rate(device)) / 2
        row |= {"bf16_flops_per_s": rate, "share_of_rate": row["ours"] * planned.flops_per_image / rate}
        row |= {name: other.images_per_second() for name, other in others.items()}
        figures["rounds"].append(row)
        speeds = ", ".join(f"{name} {row[name]:,.0f}" for name in ("ours", *others))
        print(f"round {number + 1}: {speeds} images/s; bf16 products {rate / 1e12:.2f} TFLOP/s", flush=True)
    python = cProfile.Profile()
    python.enable()
    yield
    python.disable()
    figures["shares"] = _shares_of_parts(pstats.Stats(python))
    if device.type == "cpu":
        with profile(activities=[ProfilerActivity.CPU]) as operators:
            yield
        times = {event.key: event.self_cpu_time_total for event in operators.key_averages()}
        figures["share_of_matrix_products"] = sum(times.get(key, 0) for key in _PRODUCTS) / sum(times.values())


def _shares_of_parts(stats: pstats.Stats) -> dict[str, float]:
    """Share of the time of `train_until` that each part takes, callees included."""
    found: dict[tuple[str, str], float] = {}
    for (file, _, function), (_, _, _, cumulative, _) in stats.stats.items():  # pyright: ignore[reportAttributeAccessIssue]
        for place in (_WHOLE, *_PARTS.values()):
            if file.endswith(place[0]) and function == place[1]:
                found[place] = found.get(place, 0.0) + cumulative
    shares = {part: found[place] / found[_WHOLE] for part, place in _PARTS.items()}
    return {"forward": 1 - sum(shares.values()), **shares}


def main(settings: Settings) -> None:
    """Run all rounds and print the verdicts."""
    import_torchvision()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    data = load_dataset(settings.dataset, settings.data_root)
    config = TrainConfig(
        model=ViTConfig(num_classes=len(data.class_names)),
        images=10_000 * STEPS_A_CHUNK * settings.batch_size,
        reports=10_000,
        batch_size=settings.batch_size,
        compile=True,
        device=settings.device,
    )
    planned = plan(config, len(data.train))
    figures: dict[str, Any] = {"flops_per_image": planned.flops_per_image, "rounds": []}
    script = run_rounds(settings, data, planned, figures)
    # Training evaluates whenever it reports, which is when the script goes on: one picture makes that next to nothing.
    with contextlib.suppress(StopIteration):
        train(config, dataclasses.replace(data, val=subset(data.val, 1)), lambda _: next(script))

    rounds = figures["rounds"]
    print(f"\nimages/s, median (minimum to maximum) of {len(rounds)} rounds, batch size {settings.batch_size}:")
    for name in ("ours", *_TARGETS):
        print(f"  {name:6} {spread([row[name] for row in rounds]).text(',.0f')}")
    ratios = {name: spread([row["ours"] / row[name] for row in rounds]) for name in _TARGETS}
    share = spread([row["share_of_rate"] for row in rounds])
    for name, ratio in ratios.items():
        print(f"  ours / {name}: {ratio.text()}")
    print(f"  share of the machine's bf16 matrix-product rate: {share.text('.1%')}")
    print(
        "where our step's time goes:",
        ", ".join(f"{part} {part_share:.0%}" for part, part_share in figures["shares"].items()),
    )
    if "share_of_matrix_products" in figures:
        products = figures["share_of_matrix_products"]
        print(
            f"matrix products take {products:.0%} of it, so they run at {share.median / products:.0%} of the rate of "
            "large ones; the rest is element-wise work, normalisation, softmax, casts and copies"
        )
    had = spread([row["share_of_cores"] for row in rounds])
    if resolve_device(settings.device).type == "cpu" and had.low < _IDLE:
        print(f"NOT AN IDLE MACHINE: our turns had {had.text('.0%')} of the cores; repeat this when nothing else runs")
    verdicts = [
        Verdict(claim=f"images/s, ours over {name}", measured=ratios[name].median, target=target, unit="x")
        for name, target in _TARGETS.items()
    ]
    verdicts.append(
        Verdict(claim="share of the bf16 rate", measured=100 * share.median, target=100 * _TARGET_SHARE, unit="%")
    )
    conclude("training", settings, figures, verdicts, settings.output)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
