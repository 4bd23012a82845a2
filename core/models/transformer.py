"""What a ViT and a hybrid share: the shape of their transformer, and a classifier on tokens."""

import contextlib
import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.checks import require, require_kinds, require_one_of, require_whole
from core.models.classifier import Classifier
from core.models.layers import Block, sincos_position_embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of a stack of transformer blocks and of what it is read by.

    norm: `pre` (x + f(norm(x)), one more norm at the end) or `post` (norm(x + f(x)), as in Vaswani et al., 2017).
    layer_scale: initial value of the learnable gamma of every residual branch; None for none.
    qk_norm: queries and keys are normalised, a head alone (Dehghani et al., 2023).
    zero_init_residual: the last matrix of every residual branch starts at zero, so that a block starts as the identity.
    pooling: what the head reads: `cls` (a class token) or `mean` (of all tokens).
    position: `learned` or `sincos` (fixed, two-dimensional).
    drop_path_rate: of the last block; earlier blocks fall linearly to zero.
    patch_drop_rate: share of the patches left out in training, drawn anew a picture (Liu et al., 2022, "PatchDropout").
    """

    embed_dim: int = 128
    depth: int = 6
    num_heads: int = 4
    mlp_ratio: float = 2.0
    norm: str = "pre"
    layer_scale: float | None = 0.1
    qk_norm: bool = False
    zero_init_residual: bool = False
    pooling: str = "cls"
    position: str = "learned"
    drop_path_rate: float = 0.0
    patch_drop_rate: float = 0.0

    def __post_init__(self) -> None:
        require_kinds(self)
        require_whole(self, "embed_dim", "depth", "num_heads")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}")
        require("mlp_ratio", self.mlp_ratio, math.isfinite(self.mlp_ratio), "finite")
        if int(self.mlp_ratio * self.embed_dim) < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves no hidden channel at embed_dim={self.embed_dim}")
        require_one_of(self, "norm", ("pre", "post"))
        require_one_of(self, "pooling", ("cls", "mean"))
        require_one_of(self, "position", ("learned", "sincos"))
        if self.position == "sincos" and self.embed_dim % 4:
            raise ValueError(f"embed_dim={self.embed_dim} must be divisible by 4 for position='sincos'")
        for name in ("drop_path_rate", "patch_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale must be positive or None, got {self.layer_scale}")


class TokenClassifier(Classifier):
    """Class token, positions, blocks, last norm and head, on a square grid of tokens that a subclass makes.

    A subclass makes its own parts, then calls `_add_transformer`, and gives `embed`.
    """

    cls_token: nn.Parameter
    position: Tensor
    blocks: nn.ModuleList | nn.TransformerEncoder
    norm: nn.Module
    head: nn.Linear

    def _add_transformer(
        self, config: TransformerConfig, *, grid_size: int, num_classes: int, encoder: bool = False
    ) -> None:
        """Make the shared parts. `encoder` puts PyTorch's `nn.TransformerEncoder` in the place of our blocks."""
        dim = config.embed_dim
        self._transformer = config
        num_tokens = grid_size**2 + (config.pooling == "cls")
        if config.pooling == "cls":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.position == "learned":
            self.position = nn.Parameter(torch.empty(1, num_tokens, dim))
        else:
            patches = sincos_position_embedding(grid_size, dim)
            cls = torch.zeros(num_tokens - len(patches), dim)
            self.register_buffer("position", torch.cat([cls, patches])[None])
        if encoder:
            self.blocks = _pytorch_encoder(config)
        else:
            self.blocks = nn.ModuleList(
                Block(
                    dim,
                    config.num_heads,
                    mlp_ratio=config.mlp_ratio,
                    norm=config.norm,
                    layer_scale=config.layer_scale,
                    qk_norm=config.qk_norm,
                    drop_path_rate=rate,
                )
                for rate in _drop_path_rates(config)
            )
        self.norm = nn.LayerNorm(dim, eps=1e-6) if config.norm == "pre" else nn.Identity()
        self.head = nn.Linear(dim, num_classes)

    def _initialise_transformer(self) -> None:
        config = self._transformer
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):  # the encoder copies one layer, with its weights
                nn.init.xavier_uniform_(module.in_proj_weight)
        nn.init.zeros_(self.head.weight)
        if config.zero_init_residual:
            for name, parameter in self.blocks.named_parameters():
                if name.endswith(("attention.proj.weight", "fc2.weight", "out_proj.weight", "linear2.weight")):
                    nn.init.zeros_(parameter)
        if config.pooling == "cls":
            nn.init.normal_(self.cls_token, std=0.02)
        if config.position == "learned":
            nn.init.normal_(self.position, std=0.02)

    @abstractmethod
    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        """Tokens of a square grid, row by row."""

    def stages(self, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """What each block gives, `[batch, tokens, dim]`; the last one after the last norm.

        The class token comes first where there is one. A picture smaller than the config's is taken too: its
        positions are interpolated.
        """
        x = self.embed(images)
        config = self._transformer
        position = self._position(x.shape[1])
        if config.pooling == "cls":
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        x = self._drop_patches(x + position)
        if isinstance(self.blocks, nn.TransformerEncoder):
            # Plain products: the backward pass of the CPU's fused kernel takes three times as long in bfloat16. Only in
            # training, as the choice is the whole process's, and threads of a service must not change it for others.
            plain = self.training and x.device.type == "cpu"
            with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
                return [self.norm(self.blocks(x))]
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x)]

    def classify(self, features: Tensor) -> Float[Tensor, "batch classes"]:
        return self.head(features[:, 0] if self._transformer.pooling == "cls" else features.mean(dim=1))

    def _position(self, num_patches: int) -> Float[Tensor, "1 tokens dim"]:
        has_cls = int(self._transformer.pooling == "cls")
        known = self.position.shape[1] - has_cls
        if num_patches == known:
            return self.position
        side, size = math.isqrt(known), math.isqrt(num_patches)
        grid = self.position[:, has_cls:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
        return torch.cat([self.position[:, :has_cls], grid.flatten(2).transpose(1, 2)], dim=1)

    def _drop_patches(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch kept dim"]:
        config = self._transformer
        if not self.training or config.patch_drop_rate == 0:
            return x
        has_cls = int(config.pooling == "cls")
        batch, tokens, dim = x.shape
        num_kept = max(1, round((1 - config.patch_drop_rate) * (tokens - has_cls)))
        kept = torch.rand(batch, tokens - has_cls, device=x.device).argsort(dim=1)[:, :num_kept]
        patches = x[:, has_cls:].gather(1, kept[:, :, None].expand(-1, -1, dim))
        return torch.cat([x[:, :has_cls], patches], dim=1)


def _drop_path_rates(config: TransformerConfig) -> list[float]:
    """Of each block: linear from zero to the config's; that of the last block is the config's at any depth."""
    last = config.depth - 1
    return [config.drop_path_rate * index / last for index in range(last)] + [config.drop_path_rate]


def _pytorch_encoder(config: TransformerConfig) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        config.embed_dim,
        config.num_heads,
        dim_feedforward=int(config.mlp_ratio * config.embed_dim),
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=config.norm == "pre",
    )
    return nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
