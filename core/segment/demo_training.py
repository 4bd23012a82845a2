"""Training the weights of the `demo` preset from nothing, on generated scenes: what sweeps/demo_weights.py runs."""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.optim import Muon, schedule_factor
from core.segment.demo_clipseg import ClipSegBatches, ClipSegTraining
from core.segment.demo_sam2 import Sam2Batches, Sam2Training
from core.segment.scenes import Scene, generate_scene, render

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
# Scenes to train on, from seed 0; those to measure on begin at EVALUATION_SEED. CLIPSeg learns 12,000 by heart.
POOL_SIZE = {"clipseg": 30_000, "sam2": 12_000}
EVALUATION_SEED = 10_000_000
# What the carried weights were trained for.
STEPS = {"clipseg": 12_000, "sam2": 1_600}
# Peak learning rates of Muon and AdamW.
_RATES = (0.005, 1e-3)
CHECKPOINT_EVERY_S = 120.0


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


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside transformer layers and blocks, AdamW for all else."""
    muon_rate, adamw_rate = _RATES
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
    schedule: str,
) -> None:
    """Train `model`, whose call on a batch returns the loss and its parts; log, save and resume on the way."""
    optimizers = build_optimizers(model)
    state_file, log_file = work / f"{name}.pt", work / f"{name}.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    step = 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
        logger.info("%s goes on from step %d", name, step)
    sums: dict[str, float] = {}
    since, last = 0, time.monotonic()
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batch_at, step)
        while step < num_steps:
            batch = coming.result()
            coming = ahead.submit(batch_at, step + 1)
            factor = schedule_factor(schedule, step, num_steps, warmup_fraction=0.03, cooldown_fraction=0.3)
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
                logger.info("%s %s", name, row)
                sums, since = {}, 0
            if time.monotonic() - last > CHECKPOINT_EVERY_S or step == num_steps:
                last = time.monotonic()
                fresh = state_file.with_suffix(".fresh")
                states = [optimizer.state_dict() for optimizer in optimizers]
                torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, fresh)
                fresh.replace(state_file)
                save(output / name)


def train_demo(
    model: str,
    *,
    work: Path,
    output: Path = WEIGHTS,
    steps: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Train `clipseg` or `sam2` from nothing, or go on from the last checkpoint in `work`.

    Args:
        work: folder for checkpoints and the log.
        output: the weights are written to a folder here, at every checkpoint.
        steps: None for those of `STEPS`.
        batch_size: scenes per step; None for 32, and 16 for sam2.
    """
    torch.manual_seed(0)
    logger.info("drawing %d scenes", POOL_SIZE[model])
    images, maps, scenes = scene_pool(0, POOL_SIZE[model])
    trained: Any
    if model == "clipseg":
        trained, clipseg_batches = ClipSegTraining(), ClipSegBatches(images, maps, scenes)

        def batch_at(step: int) -> dict[str, Tensor]:
            # The towers first: a prompt a picture is enough for them. Then more, for the decoder.
            return clipseg_batches.at(step, batch_size or 32, 1 if step < 400 else 2)

        # Where the end lies matters only once the cool-down begins: a run can be ended early, or be made longer.
        schedule = "trapezoid"
    else:
        trained, sam2_batches = Sam2Training(), Sam2Batches(images, maps, scenes)

        def batch_at(step: int) -> dict[str, Tensor]:
            return sam2_batches.at(step, batch_size or 16)

        schedule = "cosine"

    trained.train()
    num_steps = STEPS[model] if steps is None else steps
    run(model, trained, batch_at, trained.save, num_steps=num_steps, work=work, output=output, schedule=schedule)
