"""Training as one function: `train(config, data)`. Reads top-down; every random draw is a function of (seed, step)."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core import checkpoint
from core.augment import normalise
from core.batches import Batches, seed_for
from core.data import Dataset
from core.distill import feature_loss, load_teacher, soft_loss, warn_if_weak
from core.evaluate import evaluate
from core.models import Classifier, ViTConfig, build_model, initialise_from_data
from core.optim import build_optimizers, schedule_factor
from core.runtime import autocast, can_compile, hardware_name, resolve_device, resolve_precision, source_commit
from core.train_config import TrainConfig, plan

STATE_FILE = "train_state.pt"

# Compiling takes 15 to 40 seconds on a CPU and gains about a fifth: below this many FLOPs it does not pay.
COMPILE_ABOVE_FLOPS = 3e13

# Pictures x tokens x width that a micro-batch of a ViT may have on a CPU: most of what a kernel writes is still in the
# core's second-level cache, of one or two megabytes, when the next one reads it. Half as much is as fast on one thread,
# and gives two too little to share.
CACHED_ELEMENTS = 64 * 65 * 128

# The parts of the loss, as they are logged. `loss_floor` is no part but the least that `hard_loss` can be.
LOSS_PARTS = ("train_loss", "loss_floor", "hard_loss", "soft_loss", "feature_loss")

LossFunction = Callable[..., tuple[Tensor, Tensor]]


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message gives the step and the configuration."""


class ResumeError(ValueError):
    """The folder holds no training state, or one of another configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What `on_epoch_end` receives: the newest row, all rows so far, and a way to keep the run as it now is."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    save: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The evaluated (averaged) model and one row of metrics per evaluation."""

    model: Classifier
    history: list[dict[str, Any]]
    save: Callable[[Path], None]


def train(
    config: TrainConfig,
    data: Dataset,
    on_epoch_end: Callable[[EpochReport], None] | None = None,
    resume_from: Path | None = None,
) -> TrainResult:
    """Train a classifier and evaluate it on the validation split `TrainConfig.reports` times, or after every pass.

    The same config and data give the same numbers; a run resumed from what `EpochReport.save` wrote ends with weights
    bit-identical to the run that was never stopped (same device and number of threads).

    Args:
        on_epoch_end: called after each evaluation; what it raises ends the run.
        resume_from: a folder that `EpochReport.save` wrote under the same config.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ResumeError: `resume_from` cannot be used.
        ValueError: the model or the teacher does not fit the data.
    """
    check_fit(config, data)
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


def check_fit(config: TrainConfig, data: Dataset) -> None:
    """What can be checked of a run before it starts.

    Raises:
        CheckpointError: the teacher's folder is not a usable checkpoint.
        ValueError: the model or the teacher does not fit the pictures or the classes.

    Warns:
        WeakTeacherWarning: the teacher is below `target_accuracy`.
    """
    _, height, width, channels = data.train.images.shape
    model = config.model
    if (height, width, channels) != (model.image_size, model.image_size, model.in_channels):
        raise ValueError(
            f"the model takes {model.image_size}x{model.image_size} pictures with {model.in_channels} channels, "
            f"{data.name} has {height}x{width} with {channels}"
        )
    if len(data.class_names) != model.num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, {data.name} has {len(data.class_names)}")
    teacher = _teacher_of(config, data)
    if teacher is not None and config.target_accuracy is not None:
        assert config.teacher is not None
        warn_if_weak(teacher, config.teacher, config.target_accuracy)


def _teacher_of(config: TrainConfig, data: Dataset) -> checkpoint.Checkpoint | None:
    if not config.distils:
        return None
    assert config.teacher is not None
    shape = config.model
    return load_teacher(
        config.teacher, class_names=data.class_names, image_size=shape.image_size, in_channels=shape.in_channels
    )


def target_entropy(
    targets: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"], num_classes: int, label_smoothing: float
) -> Float[Tensor, ""]:
    """Mean entropy of the labels in nats, once they are mixed and smoothed: no cross-entropy with them can be less."""
    shares = targets if targets.is_floating_point() else F.one_hot(targets, num_classes).float()
    shares = (1 - label_smoothing) * shares + label_smoothing / num_classes
    return torch.special.entr(shares).sum(dim=1).mean()


class _Run:
    """The state of one run between steps; all of it that matters is written by `save`."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self.config, self.data = config, data
        self.plan = plan(config, len(data.train))
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(self.device, config.precision)
        self.step = 0
        self.attempt = 1
        self.history: list[dict[str, Any]] = []
        self.wall_s = self.cpu_s = 0.0

        self.batches = Batches(
            data.train,
            batch_size=config.batch_size,
            augmentation=config.augmentation,
            mean=data.mean,
            seed=config.seed,
            device=self.device,
        )
        self.mean, self.std = (torch.tensor(v, device=self.device) for v in (data.mean, data.std))
        torch.manual_seed(seed_for(config.seed, "weights", 0))
        self.model = build_model(config.model).place(self.device).train()
        # Evenly spaced, for the pictures of a folder stand class by class.
        sample = self.batches.images[:: math.ceil(len(data.train) / 1000)]
        initialise_from_data(self.model, normalise(sample, self.mean, self.std))
        self.average = AveragedModel(self.model, multi_avg_fn=_moving_average(config.ema_decay), use_buffers=True)
        self.optimizers = build_optimizers(
            self.model,
            config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            muon_learning_rate=config.muon_learning_rate,
            momentum=config.momentum,
        )
        self.teacher: Classifier | None = None
        if (teacher := _teacher_of(config, data)) is not None:
            self.teacher = teacher.model.place(self.device).requires_grad_(False)
            self.teacher_mean, self.teacher_std = (
                torch.tensor(v, device=self.device) for v in (teacher.mean, teacher.std)
            )
        self.micro_batch_size = _micro_batch_size(config, self.device)
        self.loss = self._compiled(_loss_function(config, self.model, self.mean, self.std, self.device, self.precision))

    @property
    def averaged(self) -> Classifier:
        average = self.average.module
        assert isinstance(average, Classifier)
        return average.eval()

    def train_until(self, end: int) -> None:
        config = self.config
        wall, cpu, first = time.perf_counter(), time.process_time(), self.step
        losses = torch.zeros(end - first, len(LOSS_PARTS), device=self.device)
        while self.step < end:
            torch.manual_seed(seed_for(config.seed, "step", self.step))
            factor = schedule_factor(
                config.schedule,
                self.step,
                self.plan.num_steps,
                warmup_fraction=config.warmup_fraction,
                cooldown_fraction=config.cooldown_fraction,
            )
            images, targets = self.batches.at(self.step)
            size = config.coarse_image_size if self.step < self.plan.coarse_steps else None
            micro_batches = zip(images.split(self.micro_batch_size), targets.split(self.micro_batch_size), strict=True)
            for some_images, some_targets in micro_batches:
                loss, parts = self.loss(some_images, some_targets, self._ask_teacher(some_images), size)
                share = len(some_images) / config.batch_size
                (share * loss).backward()
                losses[self.step - first] += share * parts
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.average.update_parameters(self.model)
            self.step += 1
            # Reading the loss waits for the GPU, so there it is looked at now and then; the step named is exact anyhow.
            if self.device.type == "cpu" or self.step % 50 == 0 or self.step == end:
                self._check_finite(losses[: self.step - first, 0], first)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        self.losses = dict(zip(LOSS_PARTS, losses.mean(dim=0).tolist(), strict=True))

    def evaluate(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        config, data = self.config, self.data
        scores = evaluate(self.averaged, data.val, data.mean, data.std, precision=self.precision)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        images_seen = self.step * config.batch_size
        parts = LOSS_PARTS if self.teacher else LOSS_PARTS[:2]
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "attempt": self.attempt,
                "step": self.step,
                "progress": self.step / self.plan.num_steps,
                "passes": images_seen / len(data.train),
                "images_seen": images_seen,
                "train_flops": self.plan.train_flops(self.step),
                "teacher_flops": self.plan.teacher_flops(self.step),
                "learning_rate": self.optimizers[0].param_groups[0]["lr"],
                **{name: self.losses[name] for name in parts},
                "val_loss": scores["loss"],
                "val_accuracy": scores["accuracy"],
                "num_params": self.plan.num_params,
                "wall_s": self.wall_s,
                "cpu_s": self.cpu_s,
                "hardware": hardware_name(self.device),
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
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
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
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.history = state["step"], state["history"]
        self.attempt = self.history[-1]["attempt"] + 1
        self.wall_s, self.cpu_s = self.history[-1]["wall_s"], self.history[-1]["cpu_s"]

    def _ask_teacher(self, images: Tensor) -> list[Tensor] | None:
        """The teacher's features after each stage and, last, its logits, on the student's own view of the pictures."""
        if self.teacher is None:
            return None
        with torch.no_grad(), autocast(self.device, self.precision):
            stages = self.teacher.stages(normalise(images, self.teacher_mean, self.teacher_std))
            return [*stages, self.teacher.classify(stages[-1])]

    def _compiled(self, function: LossFunction) -> LossFunction:
        wanted = self.config.compile
        if wanted is None:
            wanted = self.plan.train_flops(self.plan.num_steps) >= COMPILE_ABOVE_FLOPS and can_compile(self.device)
        if not wanted:
            return function
        # Each config compiles its own step; without this the ninth in one process would silently run uncompiled.
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, fullgraph=True)

    def _check_finite(self, losses: Tensor, first_step: int) -> None:
        bad = (~losses.isfinite()).nonzero()
        if bad.numel():
            step = first_step + int(bad[0])
            raise NonFiniteLossError(
                f"the loss is {float(losses[bad[0]])} at step {step} of {self.plan.num_steps} with {self.config}"
            )


def _micro_batch_size(config: TrainConfig, device: torch.device) -> int:
    if config.micro_batch_size is not None:
        return min(config.micro_batch_size, config.batch_size)
    shape = config.model
    if device.type != "cpu" or not isinstance(shape, ViTConfig) or config.feature_weight:
        return config.batch_size
    fits = CACHED_ELEMENTS // (shape.num_tokens * shape.embed_dim)
    # Parts of one size, as each further size is compiled anew; where none is near, the whole batch.
    even = [size for size in range(fits // 2 + 1, fits + 1) if config.batch_size % size == 0]
    return max(even, default=config.batch_size)


# These know nothing of a run. Were they methods that it keeps, it would hold itself, and its nets would stay in memory
# for many more trials, until Python looks for such circles.


def _loss_function(
    config: TrainConfig, model: Classifier, mean: Tensor, std: Tensor, device: torch.device, precision: str
) -> LossFunction:
    def loss_and_parts(
        images: Tensor, targets: Tensor, teacher: list[Tensor] | None, size: int | None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and its parts as in `LOSS_PARTS`, cut off from the gradient."""
        pixels = normalise(images, mean, std)
        if size is not None:
            pixels = F.interpolate(pixels, size=(size, size), mode="area")
        with autocast(device, precision):
            stages = model.stages(pixels)
            logits = model.classify(stages[-1])
        logits = logits.float()
        hard = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        floor = target_entropy(targets, logits.shape[1], config.label_smoothing)
        soft = features = torch.zeros_like(hard)
        loss = hard
        if teacher is not None:
            assert config.temperature is not None
            *seen, answers = teacher
            answers = answers.float()
            soft = soft_loss(logits, answers, temperature=config.temperature, standardise=config.standardise_logits)
            loss = (1 - config.distill_weight) * hard + config.distill_weight * soft
            if config.feature_weight:
                features = feature_loss(stages, seen)
                loss = loss + config.feature_weight * features
        return loss, torch.stack([loss, floor, hard, soft, features]).detach()

    return loss_and_parts


def _moving_average(ema_decay: float) -> Callable[[Any, Any, Any], None]:
    def move(averaged: Any, current: Any, num_averaged: Any) -> None:
        # Early on the average follows the weights closely, so that the initialisation is soon forgotten.
        updates = int(num_averaged)
        decay = min(ema_decay, updates / (updates + 10))
        if not averaged[0].is_floating_point():  # a batch norm's count of steps has no meaning in between
            decay = 0.0
        get_ema_multi_avg_fn(decay)(averaged, current, num_averaged)

    return move
