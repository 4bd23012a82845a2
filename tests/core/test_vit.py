import dataclasses
import warnings
from typing import Any

import pytest
import torch
from timm.layers import DropPath as TimmDropPath
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from core.flops import training_flops_per_image
from core.models import ViTConfig, WastefulModelWarning, build_model, model_config
from core.models.layers import DropPath, sincos_position_embedding
from core.models.vit import VisionTransformer

SMALL = ViTConfig(image_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=7, layer_scale=0.3)


def timm_twin(config: ViTConfig) -> TimmViT:
    return TimmViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        init_values=config.layer_scale,
        qk_norm=config.qk_norm,
        class_token=config.pooling == "cls",
        global_pool="token" if config.pooling == "cls" else "avg",
        fc_norm=False,
    )


def copy_to_timm(ours: VisionTransformer, theirs: TimmViT) -> None:
    """Our weights under timm's names; strict, so that every parameter of both has its counterpart."""
    p, dim = ours.config.patch_size, ours.config.embed_dim
    renamed = {}
    for name, tensor in ours.state_dict().items():
        for mine, timms in {
            "patch_embed.proj": "patch_embed.proj",
            "position": "pos_embed",
            ".attention.": ".attn.",
            ".query_norm.": ".q_norm.",
            ".key_norm.": ".k_norm.",
            ".scale1.": ".ls1.",
            ".scale2.": ".ls2.",
        }.items():
            name = name.replace(mine, timms)
        renamed[name] = tensor.view(dim, -1, p, p) if name == "patch_embed.proj.weight" else tensor
    theirs.load_state_dict(renamed, strict=True)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("position", ["learned", "sincos"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_logits_and_gradients_equal_timms_on_the_same_weights(pooling: str, position: str, qk_norm: bool) -> None:
    config = dataclasses.replace(SMALL, pooling=pooling, position=position, qk_norm=qk_norm)
    torch.manual_seed(0)
    ours = VisionTransformer(config)
    for parameter in ours.parameters():  # no zeros or ones left that could hide a missing part
        nn.init.normal_(parameter, std=0.2)
    theirs = timm_twin(config)
    copy_to_timm(ours, theirs)
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    ours(images).square().sum().backward()
    theirs(images).square().sum().backward()
    ours_grad, theirs_grad = ours.blocks[0].attention.qkv.weight.grad, theirs.blocks[0].attn.qkv.weight.grad
    assert ours_grad is not None
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-4 * float(theirs_grad.abs().max()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 5}, "patch_size=5 does not divide image_size=32; sizes that do: 1, 2, 4, 8, 16, 32"),
        ({"num_heads": 3}, "num_heads=3 does not divide embed_dim=128"),
        ({"patch_size": 0}, "patch_size must be a whole number of at least 1, got 0"),
        ({"depth": 2.5}, "depth must be a whole number"),
        ({"embed_dim": 6, "num_heads": 2, "position": "sincos"}, "embed_dim=6 must be divisible by 4"),
        ({"pooling": "max"}, "pooling must be 'cls' or 'mean', got 'max'"),
        ({"position": "rotary"}, "position must be"),
        ({"norm": "both"}, "norm must be 'pre' or 'post', got 'both'"),
        ({"patch_drop_rate": 1.0}, r"patch_drop_rate must lie in \[0, 1\)"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\)"),
        ({"layer_scale": 0.0}, "layer_scale must be positive or None"),
        ({"mlp_ratio": 0.001}, "leaves no hidden channel"),
    ],
)
def test_impossible_sizes_fail_when_the_config_is_made(fields: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The tests' own type checker would stop a wrong type before the message that users see.
        with pytest.raises(ValueError, match=message):
            ViTConfig.__post_init__(_raw(fields))


def _raw(fields: dict[str, Any]) -> ViTConfig:
    config = object.__new__(ViTConfig)
    for field in dataclasses.fields(ViTConfig):
        object.__setattr__(config, field.name, fields.get(field.name, field.default))
    return config


@pytest.mark.parametrize(("patch_size", "tokens"), [(1, 1025), (16, 5), (32, 2)])
def test_wasteful_sizes_warn_with_tokens_and_flops(patch_size: int, tokens: int) -> None:
    with pytest.warns(WastefulModelWarning, match=rf"{tokens} tokens, .* GFLOPs a picture"):
        build_model(ViTConfig(patch_size=patch_size))


def test_sensible_sizes_do_not_warn() -> None:
    for patch_size in (2, 4, 8):
        build_model(ViTConfig(patch_size=patch_size))


def test_a_mistyped_field_is_refused() -> None:
    with pytest.raises(ValueError, match="vit has no field embed_dims; its fields: depth"):
        model_config("vit", {"embed_dims": 64})
    with pytest.raises(ValueError, match="unknown model 'vgg'; known: vit"):
        model_config("vgg", {})


def test_token_order_and_position_follow_the_picture() -> None:
    """A patch changed in row 1, column 2 changes only that token of the embedding."""
    model = VisionTransformer(dataclasses.replace(SMALL, pooling="mean"))
    image = torch.zeros(1, 3, 16, 16)
    changed = image.clone()
    changed[:, :, 4:8, 8:12] = 1
    difference = (model.patch_embed(changed) - model.patch_embed(image)).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_sincos_positions_are_distinct_and_near_ones_alike() -> None:
    grid = sincos_position_embedding(8, 64)
    similarity = torch.nn.functional.cosine_similarity(grid[:1], grid, dim=1)
    assert similarity.argmax() == 0
    assert similarity[1] > similarity[7]
    assert torch.cdist(grid, grid).fill_diagonal_(1).min() > 0.1


def test_drop_path_keeps_the_mean_drops_whole_pictures_and_matches_timms_rate() -> None:
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 3)
    ours, theirs = DropPath(0.3)(x), TimmDropPath(0.3)(x)
    assert ours.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(ours.amin((1, 2)), ours.amax((1, 2)))
    assert float(ours.mean()) == pytest.approx(1, abs=0.02)
    assert float(theirs.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(DropPath(0.3).eval()(x), x)


@pytest.mark.parametrize(("depth", "rates"), [(1, [0.2]), (2, [0, 0.2]), (3, [0, 0.1, 0.2])])
def test_drop_path_rises_to_its_rate_at_the_last_block(depth: int, rates: list[float]) -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, depth=depth, drop_path_rate=0.2))
    assert [block.drop_path.rate for block in model.blocks] == rates


def test_zero_initialised_residuals_make_every_block_start_as_the_identity() -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, zero_init_residual=True))
    tokens = torch.randn(2, 17, 24)
    for block in model.blocks:
        torch.testing.assert_close(block(tokens), tokens)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_share_of_the_patches_is_left_out_in_training_alone(pooling: str) -> None:
    config = dataclasses.replace(SMALL, pooling=pooling, patch_drop_rate=0.25)
    model = VisionTransformer(config)
    images = torch.randn(2, 3, 16, 16)
    has_cls = int(pooling == "cls")
    assert model.train().stages(images)[-1].shape == (2, 12 + has_cls, 24)
    assert model.eval().stages(images)[-1].shape == (2, 16 + has_cls, 24)
    costs = [training_flops_per_image(VisionTransformer(c), (3, 16, 16)) for c in (SMALL, config)]
    assert costs[1] < 0.85 * costs[0]


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_a_smaller_picture_has_its_positions_interpolated(position: str) -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, position=position))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    grid = model.position[0, 1:].view(4, 4, 24)
    small = model._position(4)[0, 1:].view(2, 2, 24)
    torch.testing.assert_close(small[0, 1], grid[:2, 2:].mean(dim=(0, 1)))
    assert torch.equal(model._position(4)[0, 0], model.position[0, 0])
