"""The baseline Vision Transformer (Dosovitskiy et al., 2021): patches, positions, pre-norm blocks, a linear head."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.models.layers import Block, PatchEmbed, sincos_position_embedding


class WastefulModelWarning(UserWarning):
    """The model can be built, but spends its computation badly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """Shape of a ViT. Validated when made; impossible sizes raise, wasteful ones warn when the model is built.

    layer_scale: initial value of the learnable gamma of every residual branch; None for none.
    pooling: what the head reads: `cls` (a class token) or `mean` (of all tokens).
    position: `learned` or `sincos` (fixed, two-dimensional).
    drop_path_rate: of the last block; earlier blocks fall linearly to zero.
    """

    image_size: int = 32
    patch_size: int = 4
    in_channels: int = 3
    num_classes: int = 10
    embed_dim: int = 128
    depth: int = 6
    num_heads: int = 4
    mlp_ratio: float = 2.0
    layer_scale: float | None = 0.1
    pooling: str = "cls"
    position: str = "learned"
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "in_channels", "num_classes", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}; "
                f"sizes that do: {', '.join(map(str, _divisors(self.image_size)))}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}")
        if int(self.mlp_ratio * self.embed_dim) < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves no hidden channel at embed_dim={self.embed_dim}")
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {self.pooling!r}")
        if self.position not in ("learned", "sincos"):
            raise ValueError(f"position must be 'learned' or 'sincos', got {self.position!r}")
        if self.position == "sincos" and self.embed_dim % 4:
            raise ValueError(f"embed_dim={self.embed_dim} must be divisible by 4 for position='sincos'")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {self.drop_path_rate}")
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale must be positive or None, got {self.layer_scale}")

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens that the blocks see: the patches, and the class token where there is one."""
        return self.grid_size**2 + (self.pooling == "cls")


class VisionTransformer(nn.Module):
    """Maps normalised pictures to class logits.

    Warns:
        WastefulModelWarning: attention's products outweigh all others (patches too small for this width), or fewer than
            16 patches are left (too large for the picture); the message gives tokens and FLOPs.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, dim)
        if config.pooling == "cls":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.position == "learned":
            self.position = nn.Parameter(torch.empty(1, config.num_tokens, dim))
        else:
            patches = sincos_position_embedding(config.grid_size, dim)
            cls = torch.zeros(config.num_tokens - len(patches), dim)
            self.register_buffer("position", torch.cat([cls, patches])[None])
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                drop_path_rate=config.drop_path_rate * index / max(1, config.depth - 1),
            )
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes)
        self._initialise()
        _warn_if_wasteful(config)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)
        if self.config.pooling == "cls":
            nn.init.normal_(self.cls_token, std=0.02)
        if self.config.position == "learned":
            nn.init.normal_(self.position, std=0.02)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens after the last norm; the class token first where there is one."""
        x = self.patch_embed(images)
        if self.config.pooling == "cls":
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        tokens = self.features(images)
        return self.head(tokens[:, 0] if self.config.pooling == "cls" else tokens.mean(dim=1))


def _warn_if_wasteful(config: ViTConfig) -> None:
    tokens, dim = config.num_tokens, config.embed_dim
    attention = 4 * tokens**2 * dim * config.depth
    linear = 2 * tokens * dim**2 * (4 + 2 * config.mlp_ratio) * config.depth
    cost = f"{tokens} tokens, {(attention + linear) / 1e9:.3g} GFLOPs a picture forward"
    if attention > linear:
        share = attention / (attention + linear)
        warnings.warn(
            f"patch_size={config.patch_size} on {config.image_size} pixels gives {cost}, {share:.0%} of them in the "
            f"attention products; a larger patch or a width above {tokens} spends them better",
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
