"""The parts of a vision transformer, written out: attention, MLP, LayerScale, DropPath and the block."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """`nn.Linear` whose bias is added apart from the product: a compiler adds it in the kernel that reads the sum.

    On the CPU a product with a bias first copies the bias to every row of the result, and then adds to that.
    """

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        product = F.linear(input, self.weight)
        return product + self.bias.to(product.dtype)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017), as two matrix products and a softmax.

    Written out rather than `scaled_dot_product_attention`: at the few hundred tokens of a small picture the products
    are a small share of the step, and on the CPU the fused kernel's bfloat16 backward pass takes three times as long.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.query_norm, self.key_norm = (
            nn.LayerNorm(embed_dim // num_heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.qkv = Linear(embed_dim, 3 * embed_dim)
        self.proj = Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, tokens, dim / heads]
        query, key = self.query_norm(query), self.key_norm(key)
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, applied to every token alone."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnable gain `gamma` a channel on a residual branch (Touvron et al., 2021, "Going deeper with ViTs")."""

    def __init__(self, embed_dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), initial))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return x * self.gamma


class DropPath(nn.Module):
    """Leaves out the residual branch of each picture with probability `rate` in training (Huang et al., 2016).

    What is kept is divided by `1 - rate`, so that the expected sum is that of evaluation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class Block(nn.Module):
    """Transformer block: x + gamma * attention(norm(x)), then x + gamma * mlp(norm(x)).

    With `norm="post"` the norm comes after the sum instead: norm(x + gamma * attention(x)), and the same for the MLP.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        norm: str,
        layer_scale: float | None,
        qk_norm: bool,
        drop_path_rate: float,
    ) -> None:
        super().__init__()

        def gain() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)

        self.is_pre_norm = norm == "pre"
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attention = Attention(embed_dim, num_heads, qk_norm=qk_norm)
        self.scale1 = gain()
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(mlp_ratio * embed_dim))
        self.scale2 = gain()
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        if self.is_pre_norm:
            x = x + self.drop_path(self.scale1(self.attention(self.norm1(x))))
            return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        x = self.norm1(x + self.drop_path(self.scale1(self.attention(x))))
        return self.norm2(x + self.drop_path(self.scale2(self.mlp(x))))


class PatchEmbed(nn.Module):
    """Cut the picture into squares of `patch_size` pixels and map each to a token; tokens run row by row."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = Linear(in_channels * patch_size**2, embed_dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        batch, channels, height, width = images.shape
        p = self.patch_size
        patches = images.reshape(batch, channels, height // p, p, width // p, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # [batch, rows, columns, channels, p, p]
        return self.proj(patches.reshape(batch, -1, channels * p * p))


def sincos_position_embedding(grid_size: int, embed_dim: int) -> Float[Tensor, "tokens dim"]:
    """Fixed 2-D sine-cosine positions (Beyer et al., 2022, "Better plain ViT baselines"), a row-major grid.

    A quarter of the channels each for sin and cos of the row, and of the column, at wavelengths up to 2 pi 10,000.
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim={embed_dim} must be divisible by 4 for 2-D sine-cosine positions")
    omega = 1 / 10_000 ** (torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim // 4 - 1 or 1))
    row, column = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
