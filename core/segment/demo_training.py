"""Train the weights of the `demo` preset from nothing, on generated scenes.

    python -m core.segment.demo_training clipseg --work /tmp/demo                 # 35 minutes on one core
    python -m core.segment.demo_training sam2 --work /tmp/demo
    python -m core.segment.demo_training clipseg --work /tmp/demo --steps 200     # a short trial

Stopped at any moment and started again with the same words, it goes on from the last checkpoint in `--work`. The
weights are written to `--output` (default: where the preset reads them) at every checkpoint.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.optim import Muon, schedule_factor
from core.runtime import import_torchvision
from core.segment.scenes import Scene, generate_scene, render

WEIGHTS = Path(__file__).parent / "weights"
POOL_SEED, POOL_SIZE = 0, 12_000  # scenes to train on; those to measure on begin at EVALUATION_SEED
EVALUATION_SEED = 10_000_000
CHECKPOINT_EVERY_S = 120.0
RATES = {"clipseg": (0.005, 1e-3), "sam2": (0.005, 1e-3)}  # Muon's and AdamW's peaks


def scene_pool(first_seed: int, num: int) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """Pictures uint8 `[num, 256, 256, 3]`, object maps uint8 `[num, 256, 256]`, and the scenes."""
    images = np.empty((num, 256, 256, 3), np.uint8)
    maps = np.empty((num, 256, 256), np.uint8)
    seeds = range(first_seed, first_seed + num)
    with ProcessPoolExecutor(2) as pool:
        for index, (image, object_map) in enumerate(pool.map(_drawn, seeds, chunksize=64)):
            images[index], maps[index] = image, object_map
    return images, maps, [generate_scene(seed) for seed in seeds]


def _drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return render(generate_scene(seed), 256)


def build_optimizers(model: nn.Module, muon_rate: float, adamw_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside transformer layers and blocks, AdamW for all else."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name or ".blocks." in name or ".transformer." in name
        (matrices if inside and parameter.ndim == 2 else rest).append(parameter)
    muon = Muon(matrices, learning_rate=muon_rate, weight_decay=0.01, momentum=0.95)
    adamw = torch.optim.AdamW(
        [{"params": rest, "initial_lr": adamw_rate}], lr=adamw_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    return [muon, adamw]


def run(
    name: str,
    model: nn.Module,
    batch_at: Callable[[int], dict[str, Any]],
    save: Callable[[Path], None],
    *,
    num_steps: int,
    work: Path,
    output: Path,
    rates: tuple[float, float],
) -> None:
    """Train `model`, whose call on a batch returns the loss and its parts; log, save and resume on the way."""
    optimizers = build_optimizers(model, *rates)
    state_file, log_file = work / f"{name}.pt", work / f"{name}.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    step = 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
        print(f"{name}: goes on from step {step}", flush=True)
    sums: dict[str, float] = {}
    since, last = 0, time.monotonic()
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batch_at, step)
        while step < num_steps:
            batch = coming.result()
            coming = ahead.submit(batch_at, step + 1)
            factor = schedule_factor("cosine", step, num_steps, warmup_fraction=0.03, cooldown_fraction=0)
            loss, parts = model(**batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step, since = step + 1, since + 1
            for part, value in parts.items():
                sums[part] = sums.get(part, 0.0) + float(value)
            if not torch.isfinite(loss):
                raise ArithmeticError(f"{name}: the loss is {float(loss)} at step {step}")
            if step % 50 == 0 or step == num_steps:
                row = {"step": step, **{part: round(total / since, 4) for part, total in sums.items()}}
                with log_file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(name, row, flush=True)
                sums, since = {}, 0
            if time.monotonic() - last > CHECKPOINT_EVERY_S or step == num_steps:
                last = time.monotonic()
                fresh = state_file.with_suffix(".fresh")
                states = [optimizer.state_dict() for optimizer in optimizers]
                torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, fresh)
                fresh.replace(state_file)
                save(output / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("clipseg", "sam2"))
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder that the weights are written to")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=None, help="scenes a step; default: 32, and 16 for sam2")
    parser.add_argument("--rates", type=float, nargs=2, help="peak learning rates of Muon and AdamW")
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch; default: all cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    import_torchvision()
    torch.manual_seed(0)
    print(f"drawing {POOL_SIZE:,} scenes", flush=True)
    images, maps, scenes = scene_pool(POOL_SEED, POOL_SIZE)
    size = arguments.batch_size or (32 if arguments.model == "clipseg" else 16)
    steps = arguments.steps
    muon_rate, adamw_rate = arguments.rates or RATES[arguments.model]
    model: Any
    if arguments.model == "clipseg":
        from core.segment.demo_clipseg import ClipSegBatches, ClipSegTraining

        model, source = ClipSegTraining(), ClipSegBatches(images, maps, scenes)

        def batch_at(step: int) -> dict[str, Tensor]:
            # The towers first: a prompt a picture is enough for them. Then more, for the decoder.
            return source.at(step, size, 1 if step < steps // 4 else 3)
    else:
        from core.segment.demo_sam2 import Sam2Batches, Sam2Training

        model, pool = Sam2Training(), Sam2Batches(images, maps, scenes)

        def batch_at(step: int) -> dict[str, Tensor]:
            return pool.at(step, size)

    run(
        arguments.model,
        model.train(),
        batch_at,
        model.save,
        num_steps=steps,
        work=arguments.work,
        output=arguments.output,
        rates=(muon_rate, adamw_rate),
    )


if __name__ == "__main__":
    main()
