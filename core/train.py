"""Training as one function: `train(config, data)`. Reads top-down; every random draw is a function of (seed, step)."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core import checkpoint
from core.augment import normalise
from core.batches import Batches, seed_for
from core.data import Dataset
from core.evaluate import evaluate
from core.flops import training_flops_per_image
from core.models import ModelConfig, build_model
from core.optim import SCHEDULES, build_adamw, schedule_factor
from core.runtime import autocast, can_compile, resolve_device, source_commit

STATE_FILE = "train_state.pt"

# Compiling takes 15 to 40 seconds on a CPU and gains about a fifth: below this many FLOPs it does not pay.
COMPILE_ABOVE_FLOPS = 3e13


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message gives the step and the configuration."""


class ResumeError(ValueError):
    """The folder holds no training state, or one of another configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run. Exactly one of the three budgets is given; a field of the wrong value fails when this is made.

    flops, images, epochs: the budget: training FLOPs (forward and backward), pictures seen, or passes over the set.
    reports: how many times, evenly spaced, the run is evaluated and can be saved; None for once a pass.
    learning_rate: the peak, of AdamW; see `core.optim.schedule_factor` for the schedules.
    clip_norm: gradients are scaled down to this norm.
    label_smoothing: share of the target spread over all classes, in [0, 1).
    ema_decay: the evaluated weights are an exponential moving average with this decay; 0 for the raw weights.
    crop_padding: pictures are shifted by up to this many pixels. flip: half of them are mirrored.
    precision: `bf16` (autocast), `float32`, or `auto`: bf16 where the device has instructions for it.
    compile: None compiles where a compiler is found and the run is long enough to gain.
    device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    model: ModelConfig
    flops: float | None = None
    images: int | None = None
    epochs: float | None = None
    reports: int | None = None
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    cooldown_fraction: float = 0.3
    clip_norm: float = 1.0
    label_smoothing: float = 0.05
    ema_decay: float = 0.99
    crop_padding: int = 4
    flip: bool = True
    precision: str = "auto"
    compile: bool | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        budgets = {name: getattr(self, name) for name in ("flops", "images", "epochs")}
        given = {name: value for name, value in budgets.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one budget of flops, images and epochs, got {given or 'none'}")
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive finite number, got {value}")
        for name, low in (("batch_size", 1), ("crop_padding", 0), ("seed", 0)):
            value = getattr(self, name)
            _require(name, value, isinstance(value, int) and value >= low, f"a whole number of at least {low}")
        whole = self.reports is None or (isinstance(self.reports, int) and self.reports >= 1)
        _require("reports", self.reports, whole, "a whole number of at least 1, or None")
        fits = self.crop_padding < self.model.image_size
        _require("crop_padding", self.crop_padding, fits, f"below the picture's size, {self.model.image_size}")
        _require("flip", self.flip, isinstance(self.flip, bool), "true or false")
        _require("compile", self.compile, self.compile is None or isinstance(self.compile, bool), "true, false or None")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "positive")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _require("clip_norm", self.clip_norm, self.clip_norm > 0, "positive")
        for name in ("warmup_fraction", "cooldown_fraction", "label_smoothing", "ema_decay"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        known = self.precision in ("auto", "bf16", "float32")
        _require("precision", self.precision, known, "'auto', 'bf16' or 'float32'")


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a config comes to on a training set: steps, their cost, and the steps after which the run reports."""

    num_steps: int
    batch_size: int
    flops_per_image: float
    num_params: int
    report_steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What `on_epoch_end` receives: the newest row, all rows so far, and a way to keep the run as it now is."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    save: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The evaluated (averaged) model and a row of metrics an epoch."""

    model: nn.Module
    history: list[dict[str, Any]]
    save: Callable[[Path], None]


def plan(config: TrainConfig, num_train: int) -> Plan:
    """Work out the run before it starts, without data and without touching the device."""
    with torch.device("meta"):
        model = build_model(config.model)
    shape = (config.model.in_channels, config.model.image_size, config.model.image_size)
    flops_per_image = training_flops_per_image(model, shape)
    if config.flops is not None:
        images = config.flops / flops_per_image
    elif config.images is not None:
        images = config.images
    else:
        assert config.epochs is not None  # one of the three is given
        images = config.epochs * num_train
    num_steps = max(1, round(images / config.batch_size))
    if config.reports is None:
        passes = math.ceil(num_steps * config.batch_size / num_train)
        marks = [round(p * num_train / config.batch_size) for p in range(1, passes)]
    else:
        marks = [round(num_steps * r / config.reports) for r in range(1, config.reports)]
    report_steps = tuple(sorted({min(max(1, mark), num_steps) for mark in (*marks, num_steps)}))
    num_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Plan(
        num_steps=num_steps,
        batch_size=config.batch_size,
        flops_per_image=flops_per_image,
        num_params=num_params,
        report_steps=report_steps,
    )


def train(
    config: TrainConfig,
    data: Dataset,
    on_epoch_end: Callable[[EpochReport], None] | None = None,
    resume_from: Path | None = None,
) -> TrainResult:
    """Train a classifier and evaluate it on the validation split after every epoch (see `TrainConfig.reports`).

    The same config and data give the same numbers; a run resumed from what `EpochReport.save` wrote ends with weights
    bit-identical to the run that was never stopped (same device and number of threads).

    Args:
        on_epoch_end: called after each evaluation; what it raises ends the run.
        resume_from: a folder that `EpochReport.save` wrote under the same config.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ResumeError: `resume_from` cannot be used.
        ValueError: the model does not fit the pictures.
    """
    _check_fit(config, data)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        run = _Run(config, data)
        if resume_from is not None:
            run.restore(resume_from)
        for report_step in run.plan.report_steps:
            if report_step <= run.step:
                continue
            run.train_until(report_step)
            run.evaluate()
            if on_epoch_end is not None:
                on_epoch_end(EpochReport(metrics=run.history[-1], history=list(run.history), save=run.save))
    return TrainResult(model=run.averaged, history=run.history, save=run.save)


def _check_fit(config: TrainConfig, data: Dataset) -> None:
    _, height, width, channels = data.train.images.shape
    model = config.model
    if (height, width, channels) != (model.image_size, model.image_size, model.in_channels):
        raise ValueError(
            f"the model takes {model.image_size}x{model.image_size} pictures with {model.in_channels} channels, "
            f"{data.name} has {height}x{width} with {channels}"
        )
    if len(data.class_names) != model.num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, {data.name} has {len(data.class_names)}")


class _Run:
    """The state of one run between steps; all of it that matters is written by `save`."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self.config, self.data = config, data
        self.plan = plan(config, len(data.train))
        self.device = resolve_device(config.device)
        self.step = 0
        self.attempt = 1
        self.history: list[dict[str, Any]] = []
        self.wall_s = self.cpu_s = 0.0

        torch.manual_seed(seed_for(config.seed, "weights", 0))
        self.model = build_model(config.model).to(self.device).train()
        self.average = AveragedModel(self.model, multi_avg_fn=self._move_average, use_buffers=True)
        self.optimizer = build_adamw(self.model, config.learning_rate, config.weight_decay)
        self.batches = Batches(
            data.train,
            batch_size=config.batch_size,
            crop_padding=config.crop_padding,
            flip=config.flip,
            seed=config.seed,
            device=self.device,
        )
        self.mean, self.std = (torch.tensor(v, device=self.device) for v in (data.mean, data.std))
        self.loss = self._compiled(self._loss)

    @property
    def averaged(self) -> nn.Module:
        return self.average.module.eval()

    def train_until(self, end: int) -> None:
        config = self.config
        wall, cpu, first = time.perf_counter(), time.process_time(), self.step
        losses = torch.empty(end - first, device=self.device)
        while self.step < end:
            torch.manual_seed(seed_for(config.seed, "step", self.step))
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule_factor(
                    config.schedule,
                    self.step,
                    self.plan.num_steps,
                    warmup_fraction=config.warmup_fraction,
                    cooldown_fraction=config.cooldown_fraction,
                )
            loss = self.loss(*self.batches.at(self.step))
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.average.update_parameters(self.model)
            losses[self.step - first] = loss.detach()
            self.step += 1
            # Reading the loss waits for the GPU, so there it is looked at now and then; the step named is exact anyhow.
            if self.device.type == "cpu" or self.step % 50 == 0 or self.step == end:
                self._check_finite(losses[: self.step - first], first)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        self.train_loss = float(losses.mean())

    def evaluate(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        config, data = self.config, self.data
        scores = evaluate(self.averaged, data.val, data.mean, data.std, precision=config.precision)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        images_seen = self.step * config.batch_size
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "attempt": self.attempt,
                "step": self.step,
                "progress": self.step / self.plan.num_steps,
                "passes": images_seen / len(data.train),
                "images_seen": images_seen,
                "train_flops": images_seen * self.plan.flops_per_image,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "train_loss": self.train_loss,
                "val_loss": scores["loss"],
                "val_accuracy": scores["accuracy"],
                "num_params": self.plan.num_params,
                "wall_s": self.wall_s,
                "cpu_s": self.cpu_s,
            }
        )

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder of the averaged model, with the training state beside it."""
        resolved = dataclasses.asdict(self.config)
        checkpoint.save(
            folder,
            checkpoint.Checkpoint(
                model=self.averaged,
                model_config=self.config.model,
                class_names=self.data.class_names,
                mean=self.data.mean,
                std=self.data.std,
                dataset=self.data.name,
                metrics=self.history[-1] if self.history else {},
                training=resolved,
                commit=source_commit(),
            ),
        )
        state = {
            "config": resolved,
            "step": self.step,
            "history": self.history,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        fresh = folder / f".{STATE_FILE}"
        torch.save(state, fresh)
        fresh.replace(folder / STATE_FILE)

    def restore(self, folder: Path) -> None:
        file = folder / STATE_FILE
        if not file.is_file():
            raise ResumeError(f"{folder} has no {STATE_FILE}: it cannot be resumed, only evaluated or served")
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
            raise ResumeError(f"{file} cannot be read: {error}") from error
        mine, theirs = dataclasses.asdict(self.config), state["config"]
        # Where and how fast it runs may change; what is computed may not.
        differing = [k for k in mine if k not in ("device", "compile") and mine[k] != theirs.get(k)]
        if differing:
            changes = ", ".join(f"{k}: {theirs.get(k)!r} there, {mine[k]!r} here" for k in differing)
            raise ResumeError(f"{folder} was trained under another configuration ({changes})")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self.attempt = self.history[-1]["attempt"] + 1
        self.wall_s, self.cpu_s = self.history[-1]["wall_s"], self.history[-1]["cpu_s"]

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            logits = self.model(normalise(images, self.mean, self.std))
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def _compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        wanted = self.config.compile
        if wanted is None:
            total = self.plan.num_steps * self.config.batch_size * self.plan.flops_per_image
            wanted = total >= COMPILE_ABOVE_FLOPS and can_compile(self.device)
        if not wanted:
            return function
        # Each config compiles its own step; without this the ninth in one process would silently run uncompiled.
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False)

    def _move_average(self, averaged: Any, current: Any, num_averaged: Any) -> None:
        # Early on the average follows the weights closely, so that the initialisation is soon forgotten.
        updates = int(num_averaged)
        decay = min(self.config.ema_decay, updates / (updates + 10))
        get_ema_multi_avg_fn(decay)(averaged, current, num_averaged)

    def _check_finite(self, losses: Tensor, first_step: int) -> None:
        bad = (~losses.isfinite()).nonzero()
        if bad.numel():
            step = first_step + int(bad[0])
            raise NonFiniteLossError(
                f"the loss is {float(losses[bad[0]])} at step {step} of {self.plan.num_steps} with {self.config}"
            )
