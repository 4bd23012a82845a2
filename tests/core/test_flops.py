import pytest

from core.flops import training_flops_per_image
from core.models import ViTConfig, build_model


def by_hand(config: ViTConfig) -> float:
    """Forward FLOPs of one picture: patch embedding; a block's qkv, scores, mix, projection and MLP; head."""
    tokens, patches, dim = config.num_tokens, config.grid_size**2, config.embed_dim
    embedding = 2 * patches * config.in_channels * config.patch_size**2 * dim
    linear = 2 * tokens * dim * dim * (4 + 2 * config.mlp_ratio)
    attention = 2 * 2 * tokens**2 * dim
    return embedding + config.depth * (linear + attention) + 2 * dim * config.num_classes


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_counts_equal_the_sum_by_hand_with_attention(patch_size: int) -> None:
    config = ViTConfig(patch_size=patch_size)
    model, shape = build_model(config), (3, 32, 32)
    # The backward pass costs twice the forward, less the gradient of the pictures, which nobody needs.
    unneeded = 2 * config.grid_size**2 * 3 * patch_size**2 * config.embed_dim
    assert training_flops_per_image(model, shape) == pytest.approx(3 * by_hand(config) - unneeded, rel=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = build_model(ViTConfig(patch_size=8, embed_dim=8, depth=1, num_heads=1))
    model.eval()
    training_flops_per_image(model, (3, 32, 32))
    assert not model.training
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())
