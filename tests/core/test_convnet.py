import pytest
import torch
from torch.nn import functional as F

from core.flops import training_flops_per_image
from core.models import ConvNetConfig, build_model, initialise_from_data


def test_whitened_patches_are_uncorrelated_with_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.avg_pool2d(torch.randn(200, 3, 18, 18, generator=generator), 3, stride=1)  # neighbours correlate
    model = build_model(ConvNetConfig(width=4))
    initialise_from_data(model, images)
    outputs = model.get_submodule("stem")(images).permute(0, 2, 3, 1).reshape(-1, 24)[:, :12]
    covariance = (outputs.T @ outputs / len(outputs)).detach()
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.05)
    weight = model.get_parameter("stem.weight")
    assert torch.equal(weight[12:], -weight[:12])


def test_the_whitening_is_not_trained_and_its_bias_is() -> None:
    model = build_model(ConvNetConfig(width=4))
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert model.get_parameter("stem.weight").grad is None
    assert model.get_parameter("stem.bias").grad is not None


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_every_stage_halves_the_side(whiten: bool, residual: bool) -> None:
    model = build_model(ConvNetConfig(width=4, whiten=whiten, residual=residual))
    sides = [15, 7, 3] if whiten else [16, 8, 4]
    maps = model.stages(torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip((4, 16, 16), sides, strict=True)]


def test_convolutions_start_as_the_identity() -> None:
    stage = build_model(ConvNetConfig(width=4)).get_submodule("layers.0")
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(stage.get_submodule("conv2")(x), x)


def test_the_published_size_costs_what_is_known() -> None:
    with torch.device("meta"):
        model = build_model(ConvNetConfig())
    assert training_flops_per_image(model, (3, 32, 32)) == pytest.approx(0.71e9, rel=0.02)


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="num_stages=5 halves 32 pixels to less than one"):
        ConvNetConfig(num_stages=5)
