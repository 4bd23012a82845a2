import dataclasses
from typing import Any

import pytest
import torch

from core.flops import training_flops_per_image
from core.models import HybridConfig, build_model
from core.models.hybrid import TRUNKS
from core.models.layers import Block

SMALL = HybridConfig(trunk_width=8, embed_dim=16, depth=2, num_heads=2, layer_scale=None, num_classes=5)


def with_fields(**fields: Any) -> HybridConfig:
    return dataclasses.replace(SMALL, **fields)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("blocks", ["explicit", "encoder", "none"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_part_learns_and_every_token_is_placed(trunk: str, blocks: str, pooling: str) -> None:
    torch.manual_seed(0)
    config = with_fields(trunk=trunk, blocks=blocks, pooling=pooling)
    model = build_model(config)
    torch.nn.init.normal_(model.get_parameter("head.weight"))  # starts at zero, which stops all gradients
    logits = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without
    if blocks != "none":
        assert model.embed(torch.randn(2, 3, 32, 32)).shape == (2, config.grid_size**2, 16)


def test_explicit_blocks_equal_pytorchs_encoder_on_the_same_weights() -> None:
    """Ours can stand in its place: pre- and post-norm, with and without a class token."""
    for norm in ("pre", "post"):
        torch.manual_seed(0)
        ours, theirs = (build_model(with_fields(blocks=b, norm=norm)).eval() for b in ("explicit", "encoder"))
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        renamed = {}
        for name, tensor in ours.state_dict().items():
            for mine, pytorchs in {
                "blocks.": "blocks.layers.",
                "attention.qkv.": "self_attn.in_proj_",
                "attention.proj": "self_attn.out_proj",
                "mlp.fc1": "linear1",
                "mlp.fc2": "linear2",
            }.items():
                name = name.replace(mine, pytorchs)
            renamed[name] = tensor
        theirs.load_state_dict(renamed, strict=True)
        images = torch.randn(3, 3, 32, 32)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)
        for model in (ours, theirs):
            model.train()(images).square().sum().backward()
        torch.testing.assert_close(
            ours.get_parameter("proj.weight").grad, theirs.get_parameter("proj.weight").grad, rtol=1e-2, atol=1e-2
        )


def test_every_layer_of_pytorchs_encoder_starts_with_weights_of_its_own_drawn_as_ours_are() -> None:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"embed_dim": 64, "depth": 3}
    explicit, encoder = (build_model(with_fields(**fields, blocks=blocks)) for blocks in ("explicit", "encoder"))
    theirs = encoder.get_submodule("blocks").state_dict()
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"):
        first, second, third = (theirs[f"layers.{index}.{name}"] for index in range(3))
        assert not (torch.equal(first, second) or torch.equal(second, third) or torch.equal(first, third))
    for index in range(3):
        ours = explicit.get_parameter(f"blocks.{index}.attention.qkv.weight").detach()
        drawn = theirs[f"layers.{index}.self_attn.in_proj_weight"]
        assert float(drawn.std()) == pytest.approx(float(ours.std()), rel=0.03)
        assert float(drawn.abs().max()) == pytest.approx(float(ours.abs().max()), rel=0.01)


def test_the_control_is_the_trunk_alone_and_costs_less() -> None:
    with torch.device("meta"):
        whole, control = build_model(SMALL), build_model(with_fields(blocks="none"))
    assert not any(isinstance(module, Block) for module in control.modules())
    costs = [training_flops_per_image(model, (3, 32, 32)) for model in (whole, control)]
    assert costs[1] < costs[0]


def test_the_flops_of_both_kinds_of_blocks_are_the_same() -> None:
    """PyTorch's encoder calls fused kernels, which a careless counter leaves out."""
    with torch.device("meta"):
        models = [build_model(with_fields(blocks=blocks)) for blocks in ("explicit", "encoder")]
    explicit, encoder = (training_flops_per_image(model, (3, 32, 32)) for model in models)
    assert explicit == encoder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trunk": "vgg"}, "trunk must be 'cnn', 'residual_cnn' or 'resnet', got 'vgg'"),
        ({"blocks": "encoder", "layer_scale": 0.1}, "PyTorch's own, which has no layer_scale"),
        ({"blocks": "encoder", "drop_path_rate": 0.1}, "PyTorch's own, which has no layer_scale, qk_norm or drop_path"),
        ({"blocks": "none", "drop_path_rate": 0.1}, "no transformer that .* could act on; got drop_path_rate=0.1"),
        ({"blocks": "none", "patch_drop_rate": 0.2}, "no transformer that .* could act on; .*patch_drop_rate=0.2"),
        ({"trunk": "resnet", "trunk_width": 4}, "trunk_width must be at least 8 for trunk='resnet', got 4"),
        ({"trunk_stages": 5}, "trunk_stages=5 halves 32 pixels to less than one"),
        ({"num_heads": 3}, "num_heads=3 does not divide embed_dim=16"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_fields(**fields)
