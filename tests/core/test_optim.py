import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core.models import HybridConfig, ViTConfig, build_model
from core.optim import Muon, build_optimizers, flops_per_step, orthogonalise, schedule_factor


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


def build(model: nn.Module, optimizer: str) -> list[torch.optim.Optimizer]:
    return build_optimizers(
        model, optimizer, learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02, momentum=0.9
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_matrices_decay(optimizer: str) -> None:
    model = build_model(ViTConfig(patch_size=8, embed_dim=8, depth=1, num_heads=1))
    (built,) = build(model, optimizer)
    decayed, free = built.param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") and p.ndim == 2 for p in decayed["params"])
    assert {"position", "cls_token", "norm.weight", "blocks.0.scale1.gamma"} <= {names[id(p)] for p in free["params"]}


def test_every_trained_parameter_has_one_optimiser_and_kernels_are_muons() -> None:
    model = build_model(HybridConfig(trunk_width=4, embed_dim=8, depth=1, num_heads=1))
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    adamw, muon = build(model, "muon")
    (hidden,) = muon.param_groups
    seen = [names[id(p)] for built in (adamw, muon) for group in built.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    assert {"trunk.layers.0.conv1.weight", "blocks.0.attention.qkv.weight", "proj.weight"} <= {
        names[id(p)] for p in hidden["params"]
    }
    assert "head.weight" not in {names[id(p)] for p in hidden["params"]}
    assert [group["initial_lr"] for group in (*adamw.param_groups, hidden)] == [1e-3, 1e-3, 0.02]


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_steps_as_pytorchs_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], learning_rate=0.1, weight_decay=0.2, momentum=0.9)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.9)
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step(), reference.step()
        # Theirs is in bfloat16, which has three digits; a step is about 0.1 large.
        torch.testing.assert_close(ours.data, theirs.data, rtol=0, atol=0.01)


def test_muon_sees_a_kernel_as_a_matrix_in_any_memory_format_and_batches_by_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    kernels = [torch.randn(6, 4, 3, 3, generator=generator) for _ in range(3)]
    as_kernels = [nn.Parameter(k.clone(memory_format=torch.channels_last)) for k in kernels]
    as_matrices = [nn.Parameter(k.flatten(1).clone()) for k in kernels]
    for parameter, other in zip(as_kernels, as_matrices, strict=True):
        parameter.grad = torch.randn(6, 4, 3, 3, generator=generator)
        other.grad = parameter.grad.flatten(1).clone()
        Muon([other], learning_rate=0.1, weight_decay=0.0, momentum=0.9).step()
    Muon(as_kernels, learning_rate=0.1, weight_decay=0.0, momentum=0.9).step()
    for parameter, other in zip(as_kernels, as_matrices, strict=True):
        torch.testing.assert_close(parameter.flatten(1), other)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_the_flops_of_muon_are_those_of_its_products() -> None:
    model = build_model(ViTConfig(patch_size=8, embed_dim=8, depth=2, num_heads=1))
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blocks")]
    with FlopCounterMode(display=False) as counter:
        for parameter in hidden:
            orthogonalise(parameter.detach()[None])
    assert flops_per_step(model, "muon") == counter.get_total_flops() > 0
    assert flops_per_step(model, "adamw") == 0
