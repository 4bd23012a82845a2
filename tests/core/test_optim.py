import math

import pytest
import torch

from core.models import ViTConfig, build_model
from core.optim import build_adamw, schedule_factor


def factors(schedule: str, num_steps: int) -> list[float]:
    return [
        schedule_factor(schedule, s, num_steps, warmup_fraction=0.1, cooldown_fraction=0.3) for s in range(num_steps)
    ]


def test_cosine_equals_pytorchs_after_warm_up() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    ours = factors("cosine", 100)
    assert ours[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    for value in ours[10:]:
        assert value == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()


def test_trapezoid_is_constant_until_the_cool_down_wherever_the_end_lies() -> None:
    for num_steps in (100, 1000):
        ours = factors("trapezoid", num_steps)
        constant = ours[num_steps // 10 : num_steps * 7 // 10]
        assert set(constant) == {1.0}
        assert ours[-1] == pytest.approx(1 / (0.3 * num_steps))
        assert all(a >= b for a, b in zip(ours[num_steps // 2 :], ours[num_steps // 2 + 1 :], strict=False))


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_short_runs_have_finite_positive_rates(schedule: str, num_steps: int) -> None:
    assert all(0 < f <= 1 and math.isfinite(f) for f in factors(schedule, num_steps))


def test_only_matrices_decay() -> None:
    model = build_model(ViTConfig(patch_size=8, embed_dim=8, depth=1, num_heads=1))
    decayed, free = build_adamw(model, 1e-3, 0.1).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") and p.ndim == 2 for p in decayed["params"])
    assert {"position", "cls_token", "norm.weight", "blocks.0.scale1.gamma"} <= {names[id(p)] for p in free["params"]}
