"""The baseline Vision Transformer (Dosovitskiy et al., 2021): patches, positions, pre-norm blocks, a linear head."""

import math
import warnings
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from core.checks import require_whole
from core.models.layers import PatchEmbed
from core.models.transformer import TokenClassifier, TransformerConfig


class WastefulModelWarning(UserWarning):
    """The model can be built, but spends its computation badly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig(TransformerConfig):
    """Shape of a ViT. Validated when made; impossible sizes raise, wasteful ones warn when the model is built."""

    image_size: int = 32
    patch_size: int = 4
    in_channels: int = 3
    num_classes: int = 10

    def __post_init__(self) -> None:
        require_whole(self, "image_size", "patch_size", "in_channels", "num_classes")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}; "
                f"sizes that do: {', '.join(map(str, _divisors(self.image_size)))}"
            )
        TransformerConfig.__post_init__(self)  # `super()` fails in a dataclass with slots

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens that the blocks see: the patches, and the class token where there is one."""
        return self.grid_size**2 + (self.pooling == "cls")


class VisionTransformer(TokenClassifier):
    """Maps normalised pictures to class logits.

    Warns:
        WastefulModelWarning: attention's products outweigh all others (patches too small for this width), or fewer than
            16 patches are left (too large for the picture); the message gives tokens and FLOPs.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, config.embed_dim)
        self._add_transformer(config, grid_size=config.grid_size, num_classes=config.num_classes)
        self._initialise_transformer()
        _warn_if_wasteful(config)

    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        return self.patch_embed(images)


def _warn_if_wasteful(config: ViTConfig) -> None:
    tokens, dim = config.num_tokens, config.embed_dim
    attention = 4 * tokens**2 * dim * config.depth
    linear = 2 * tokens * dim**2 * (4 + 2 * config.mlp_ratio) * config.depth
    cost = f"{tokens} tokens, {(attention + linear) / 1e9:.3g} GFLOPs a picture forward"
    if attention > linear:
        share, enough = attention / (attention + linear), math.ceil(tokens / (2 + config.mlp_ratio))
        warnings.warn(
            f"patch_size={config.patch_size} on {config.image_size} pixels gives {cost}, {share:.0%} of them in the "
            f"attention products; a larger patch, or a width of at least {enough}, spends them better",
            WastefulModelWarning,
            stacklevel=3,
        )
    elif config.grid_size**2 < 16:
        warnings.warn(
            f"patch_size={config.patch_size} on {config.image_size} pixels leaves {cost}: attention has next to "
            f"nothing to relate; expect a large loss of accuracy",
            WastefulModelWarning,
            stacklevel=3,
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
