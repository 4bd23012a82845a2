"""What a training run is asked to do, validated, and what that comes to in steps and FLOPs before anything is run."""

import dataclasses
import math
import re
from dataclasses import dataclass

import torch

from core.augment import Augmentation
from core.carried import checkpoint_folder
from core.checkpoint import load
from core.checks import require, require_kinds, require_one_of, require_whole
from core.flops import feature_loss_flops_per_image, forward_flops_per_image, training_flops_per_image
from core.models import ModelConfig, TransformerConfig, build_model
from core.optim import OPTIMIZERS, SCHEDULES, flops_per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run. Exactly one of the three budgets is given; a field of the wrong value fails when this is made.

    flops, images, epochs: the budget: training FLOPs (forward and backward), pictures seen, or passes over the set.
    reports: how many times, evenly spaced, the run is evaluated and can be saved; None for once a pass.
    optimizer: `adamw`, `sgd` or `muon`; see `core.optim.build_optimizers`.
    learning_rate: the peak; see `core.optim.schedule_factor` for the schedules.
    muon_learning_rate: the peak for what Muon trains. momentum: of Muon and SGD.
    clip_norm: gradients are scaled down to this norm.
    label_smoothing: share of the target spread over all classes, in [0, 1).
    ema_decay: the evaluated weights are an exponential moving average with this decay; 0 for the raw weights.
    crop_padding, flip, color_jitter, trivial_augment, random_erasing, mixup_alpha, cutmix_alpha: see
        `core.augment.Augmentation`.
    coarse_image_size: the first `coarse_fraction` of the steps see pictures shrunk to this size, which cost less.
    teacher: a checkpoint folder to distil from, or `carried` for the classifier that the project carries.
    temperature: of the distillation; None learns from the labels alone. A `distill_weight` of the loss is the
        teacher's, the rest the labels'; `feature_weight` times the features' loss is added. See `core.distill`, also
        for `standardise_logits`.
    count_teacher: whether the training FLOPs, and so a budget of them, include the teacher's forward passes.
    target_accuracy: what the student should reach in validation, in [0, 1]; a teacher below it warns.
    micro_batch_size: this many pictures of a batch go through the net at a time, and their gradients are summed: less
        memory for the same step, if nothing in it looks across a batch, as batch norm and `feature_weight` do. None
        takes what suits the processor's cache, and the whole batch on a GPU or where something looks across it.
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
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    cooldown_fraction: float = 0.3
    clip_norm: float = 1.0
    label_smoothing: float = 0.05
    ema_decay: float = 0.99
    crop_padding: int = 4
    flip: bool | str = True
    color_jitter: float = 0.0
    trivial_augment: bool = False
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    coarse_image_size: int | None = None
    coarse_fraction: float = 0.5
    teacher: str | None = None
    temperature: float | None = None
    distill_weight: float = 0.5
    standardise_logits: bool = False
    feature_weight: float = 0.0
    count_teacher: bool = False
    target_accuracy: float | None = None
    micro_batch_size: int | None = None
    precision: str = "auto"
    compile: bool | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require_kinds(self)
        budgets = {name: getattr(self, name) for name in ("flops", "images", "epochs")}
        given = {name: value for name, value in budgets.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one budget of flops, images and epochs, got {given or 'none'}")
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive finite number, got {value}")
        require_whole(self, "batch_size")
        require_whole(self, "seed", at_least=0)
        require_whole(self, "reports", "micro_batch_size", or_none=True)
        if self.augmentation.mixes and self.batch_size < 2:
            raise ValueError("Mixup and CutMix mix two pictures of a batch: batch_size must be at least 2, got 1")
        fits = self.crop_padding < self.model.image_size
        require("crop_padding", self.crop_padding, fits, f"below the picture's size, {self.model.image_size}")
        for name in ("learning_rate", "muon_learning_rate"):
            require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "positive")
        require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        require("clip_norm", self.clip_norm, self.clip_norm > 0, "positive")
        for name in ("warmup_fraction", "cooldown_fraction", "label_smoothing", "ema_decay", "momentum"):
            require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        require("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        require_one_of(self, "precision", ("auto", "bf16", "float32"))
        is_device = re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)) is not None
        require("device", self.device, is_device, "auto, cpu, cuda or cuda:N")
        self._check_coarse()
        self._check_distillation()

    @property
    def augmentation(self) -> Augmentation:
        """What the training pictures go through."""
        return Augmentation(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Augmentation)})

    @property
    def distils(self) -> bool:
        """Whether a teacher takes part."""
        return self.temperature is not None

    def _check_coarse(self) -> None:
        require("coarse_fraction", self.coarse_fraction, 0 < self.coarse_fraction <= 1, "in (0, 1]")
        size, full = self.coarse_image_size, self.model.image_size
        if size is None:
            return
        require("coarse_image_size", size, isinstance(size, int) and 0 < size < full, f"between 0 and {full}, or None")
        try:
            dataclasses.replace(self.model, image_size=size)
        except ValueError as error:
            raise ValueError(f"coarse_image_size={size} does not suit the model: {error}") from error

    def _check_distillation(self) -> None:
        temperature, target = self.temperature, self.target_accuracy
        require("temperature", temperature, temperature is None or 0 < temperature < math.inf, "positive, or None")
        require("distill_weight", self.distill_weight, 0 <= self.distill_weight <= 1, "in [0, 1]")
        require("feature_weight", self.feature_weight, 0 <= self.feature_weight < math.inf, "at least 0")
        require("target_accuracy", target, target is None or 0 <= target <= 1, "in [0, 1], or None")
        if self.distils and self.teacher is None:
            raise ValueError(f"temperature={temperature} needs a teacher: the folder of a checkpoint")
        drops = isinstance(self.model, TransformerConfig) and self.model.patch_drop_rate > 0
        if self.distils and self.feature_weight and drops:
            raise ValueError("feature_weight compares whole pictures: patch_drop_rate must be 0 with it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a config comes to on a training set: steps, their cost, and the steps after which the run reports.

    flops_per_image, coarse_flops_per_image: forward and backward, for a whole picture and for a shrunk one, with the
        features' loss where there is one; the first `coarse_steps` steps see shrunk ones.
    teacher_flops_per_image: the teacher's forward pass; a part of the training FLOPs where `count_teacher` is set.
    """

    num_steps: int
    batch_size: int
    flops_per_image: float
    num_params: int
    report_steps: tuple[int, ...]
    coarse_steps: int
    coarse_flops_per_image: float
    optimizer_flops_per_step: float
    teacher_flops_per_image: float
    count_teacher: bool

    def train_flops(self, step: int) -> float:
        """FLOPs of the first `step` steps, the teacher's among them only where `count_teacher` is set."""
        coarse = min(step, self.coarse_steps)
        images = coarse * self.coarse_flops_per_image + (step - coarse) * self.flops_per_image
        teacher = self.teacher_flops(step) if self.count_teacher else 0
        return self.batch_size * images + step * self.optimizer_flops_per_step + teacher

    def teacher_flops(self, step: int) -> float:
        """FLOPs of the teacher's forward passes in the first `step` steps, whether counted as training or not."""
        return step * self.batch_size * self.teacher_flops_per_image


def plan(config: TrainConfig, num_train: int) -> Plan:
    """Work out the run before it starts, without data and without touching the device."""
    with torch.device("meta"):
        model = build_model(config.model)
    size, batch_size = config.model.image_size, config.batch_size
    shape = (config.model.in_channels, size, size)
    teacher = load(checkpoint_folder(str(config.teacher))).model.to("meta") if config.distils else None

    def student_flops_per_image(size: int) -> float:
        seen = (config.model.in_channels, size, size)
        flops = training_flops_per_image(model, seen)
        if teacher is not None and config.feature_weight:
            flops += feature_loss_flops_per_image(model, seen, teacher, shape, batch_size)
        return flops

    flops_per_image = coarse_flops_per_image = student_flops_per_image(size)
    coarse_fraction = 0.0
    if config.coarse_image_size is not None:
        coarse_fraction = config.coarse_fraction
        coarse_flops_per_image = student_flops_per_image(config.coarse_image_size)
    optimizer_flops = flops_per_step(model, config.optimizer)
    teacher_flops_per_image = forward_flops_per_image(teacher, shape) if teacher else 0.0
    if config.flops is not None:
        per_image = coarse_fraction * coarse_flops_per_image + (1 - coarse_fraction) * flops_per_image
        per_image += teacher_flops_per_image if config.count_teacher else 0
        steps = config.flops / (batch_size * per_image + optimizer_flops)
    elif config.images is not None:
        steps = config.images / batch_size
    else:
        assert config.epochs is not None  # one of the three is given
        steps = config.epochs * num_train / batch_size
    num_steps = max(1, round(steps))
    if config.reports is None:
        passes = math.ceil(num_steps * batch_size / num_train)
        marks = [round(p * num_train / batch_size) for p in range(1, passes)]
    else:
        marks = [round(num_steps * r / config.reports) for r in range(1, config.reports)]
    report_steps = tuple(sorted({min(max(1, mark), num_steps) for mark in (*marks, num_steps)}))
    num_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Plan(
        num_steps=num_steps,
        batch_size=batch_size,
        flops_per_image=flops_per_image,
        num_params=num_params,
        report_steps=report_steps,
        coarse_steps=round(coarse_fraction * num_steps),
        coarse_flops_per_image=coarse_flops_per_image,
        optimizer_flops_per_step=optimizer_flops,
        teacher_flops_per_image=teacher_flops_per_image,
        count_teacher=config.count_teacher,
    )
