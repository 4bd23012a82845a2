"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.runtime import multiplies_bf16

OPTIMIZERS = ("adamw", "muon", "sgd")
SCHEDULES = ("cosine", "trapezoid")

_NEWTON_SCHULZ_STEPS = 5
_NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def build_optimizers(
    model: nn.Module,
    optimizer: str,
    *,
    learning_rate: float,
    weight_decay: float,
    muon_learning_rate: float,
    momentum: float,
) -> list[torch.optim.Optimizer]:
    """The optimisers that together train a model; each group has its peak rate as `initial_lr`.

    `adamw`: AdamW (Loshchilov & Hutter, 2019). `sgd`: stochastic gradient descent with Nesterov's momentum. `muon`:
    `Muon` at `muon_learning_rate` for the hidden matrices and kernels, AdamW for the rest. Weight decay is on matrices
    and kernels only: norms, biases, gains, positions and the class token have none, as shrinking them regularises
    nothing.
    """
    hidden, decayed, free = _groups(model)
    if optimizer != "muon":
        hidden, decayed = [], [*hidden, *decayed]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "initial_lr": learning_rate},
        {"params": free, "weight_decay": 0.0, "initial_lr": learning_rate},
    ]
    if optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)]
    built: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, fused=True)]
    if hidden:
        built.append(Muon(hidden, learning_rate=muon_learning_rate, weight_decay=weight_decay, momentum=momentum))
    return built


def flops_per_step(model: nn.Module, optimizer: str) -> float:
    """FLOPs of Muon's matrix products in one step; the element-wise work of other optimisers is not counted."""
    if optimizer != "muon":
        return 0.0
    total = 0
    for parameter in _groups(model)[0]:
        rows, columns = len(parameter), parameter[0].numel()
        small, large = min(rows, columns), max(rows, columns)
        total += _NEWTON_SCHULZ_STEPS * (4 * small**2 * large + 2 * small**3)
    return float(total)


def _groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters: hidden matrices and kernels; other matrices (first and last layer of a ViT); the rest."""
    hidden, outer, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name in ("position", "cls_token"):
            rest.append(parameter)
        elif name in ("patch_embed.proj.weight", "head.weight", "fc.weight"):
            outer.append(parameter)
        else:
            hidden.append(parameter)
    return hidden, outer, rest


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, orthogonalised (Jordan et al., 2024), for matrices and for kernels seen as matrices.

    The numbers are those of `torch.optim.Muon`, which takes matrices only, one at a time and in bfloat16. Here those of
    one shape go together, and in float32 on a processor without bfloat16 instructions, where it is thirty times faster.

    learning_rate: of a square matrix; one with more rows than columns has it times sqrt(rows / columns).
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float, momentum: float
    ) -> None:
        defaults = {"lr": learning_rate, "initial_lr": learning_rate, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"]).flatten(1)
                same_shape.setdefault(tuple(update.shape), []).append((parameter, update))
            for (rows, columns), pairs in same_shape.items():
                updates = orthogonalise(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view(parameter.shape), alpha=-rate)


def orthogonalise(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Bring all singular values of each matrix near one, by five Newton-Schulz steps with Jordan's coefficients.

    They end between about 0.7 and 1.2, which serves as well as one; those that were tiny stay smaller.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.bfloat16 if multiplies_bf16(matrices.device) else torch.float32)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype).contiguous()


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
