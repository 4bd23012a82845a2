"""Optimiser and learning-rate schedules."""

import math

import torch
from torch import nn

SCHEDULES = ("cosine", "trapezoid")


def build_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) with weight decay on matrices only.

    Norms, biases, gains, positions and the class token have no decay: shrinking them regularises nothing.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and name not in ("position", "cls_token")
        (matrices if is_matrix else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def schedule_factor(
    schedule: str, step: int, num_steps: int, *, warmup_fraction: float, cooldown_fraction: float
) -> float:
    """What the peak learning rate is multiplied by at `step` (0-based) of `num_steps`.

    `cosine`: linear warm-up, then half a cosine to zero. Best when the run ends where it was planned to end.
    `trapezoid`: linear warm-up, constant, linear to zero over the last `cooldown_fraction` (Zhai et al., 2022; Hägele
    et al., 2024). Safe to stop early: until the cool-down the value does not depend on where the end lies, so trials
    compared at a rung are compared fairly.
    """
    warmup = math.ceil(warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    remaining = (num_steps - step) / max(1, num_steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * remaining))
    cooldown = max(1, math.ceil(cooldown_fraction * num_steps))
    return min(1.0, (num_steps - step) / cooldown)
