"""A small convolutional net that learns fast: whitened patches, then convolutions with max-pooling and batch norm.

The shape of Jordan (2024), "94% on CIFAR-10 in 3.29 seconds on a single GPU": with `residual` that of its 96% net.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.checks import require_kinds, require_whole
from core.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvNetConfig:
    """Shape of the net.

    width: channels of the first stage; later stages have four times as many. Every stage halves the side.
    residual: every stage ends in a residual block of two convolutions, in the place of one plain convolution.
    whiten: the first convolution whitens patches of 2x2 pixels and is not trained; else it is 3x3 and trained.
    """

    image_size: int = 32
    in_channels: int = 3
    num_classes: int = 10
    width: int = 64
    num_stages: int = 3
    residual: bool = False
    whiten: bool = True

    def __post_init__(self) -> None:
        require_kinds(self)
        require_whole(self, "image_size", "in_channels", "num_classes", "width", "num_stages")
        if ConvTrunk.grid_size(self.image_size, self.num_stages, whiten=self.whiten) < 1:
            raise ValueError(f"num_stages={self.num_stages} halves {self.image_size} pixels to less than one")


class ConvTrunk(nn.Module):
    """The stages of the net, without its head."""

    def __init__(self, in_channels: int, width: int, num_stages: int, *, residual: bool, whiten: bool) -> None:
        super().__init__()
        patch = in_channels * 4
        self.whiten = whiten
        if whiten:
            self.stem = nn.Conv2d(in_channels, 2 * patch, 2)
            self.stem.weight.requires_grad_(False)
            self.stem_norm = nn.Identity()
        else:
            self.stem = nn.Conv2d(in_channels, 2 * patch, 3, padding=1, bias=False)
            self.stem_norm = nn.BatchNorm2d(2 * patch)
        self.out_channels = 2 * patch
        self.layers = nn.ModuleList()
        for stage in range(num_stages):
            channels = width if stage == 0 else 4 * width
            self.layers.append(Stage(self.out_channels, channels, residual=residual))
            self.out_channels = channels

    @staticmethod
    def grid_size(image_size: int, num_stages: int, *, whiten: bool) -> int:
        """Side of the last stage's map."""
        return (image_size - int(whiten)) // 2**num_stages

    @torch.no_grad()
    def initialise_from_data(self, images: Float[Tensor, "n channels height width"]) -> None:
        """Set the first convolution so that its outputs on these pictures are uncorrelated, with variance one.

        Its filters are the eigenvectors of the covariance of 2x2 patches, each divided by its standard deviation, and
        their negatives, which the activation tells apart. Small variances are noise: they are not blown up.
        """
        if not self.whiten:
            return
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
        variance, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (variance + 5e-4).sqrt()).T.flip(0).view(-1, images.shape[1], 2, 2)
        self.stem.weight.copy_(torch.cat([filters, -filters]))
        assert self.stem.bias is not None
        self.stem.bias.zero_()

    def stages(self, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The map after each stage, `[batch, channels, height, width]`."""
        x = F.gelu(self.stem_norm(self.stem(images)))
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class Stage(nn.Module):
    """A convolution and a max-pool that halves the side, then one more convolution, or a residual block of two."""

    def __init__(self, in_channels: int, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = _identity_conv(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _identity_conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        if residual:
            self.conv3 = _identity_conv(channels, channels)
            self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        x = F.gelu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        y = F.gelu(self.bn2(self.conv2(x)))
        return F.gelu(x + self.bn3(self.conv3(y))) if self.residual else y


class ConvNet(ConvTrunk, Classifier):
    """Maps normalised pictures to class logits."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__(
            config.in_channels, config.width, config.num_stages, residual=config.residual, whiten=config.whiten
        )
        self.config = config
        self.head = nn.Linear(self.out_channels, config.num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def classify(self, features: Tensor) -> Float[Tensor, "batch classes"]:
        return self.head(features.amax(dim=(2, 3)))


def _identity_conv(in_channels: int, channels: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters start as the identity, so that a deep stack passes the picture on."""
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[: min(in_channels, channels)])
    return conv
