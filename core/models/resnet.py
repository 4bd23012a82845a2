"""ResNet-18 (He et al., 2016) in the form that CIFAR takes: a 3x3 first convolution, no pooling before the stages."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.checks import require_kinds, require_whole
from core.models.classifier import Classifier

# On processors with AVX2 PyTorch 2.13 crashes in the backward pass of a 1x1 convolution with stride 2, channels-last in
# memory, that has fewer input channels.
MIN_WIDTH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetConfig:
    """Shape of a ResNet of basic blocks. The defaults are ResNet-18.

    width: channels of the first stage; every further stage doubles them and halves the side.
    blocks_per_stage: basic blocks (two convolutions each) in a stage.
    zero_init_residual: the last norm of every block starts at zero, so that a block starts as the identity.
    """

    image_size: int = 32
    in_channels: int = 3
    num_classes: int = 10
    width: int = 64
    num_stages: int = 4
    blocks_per_stage: int = 2
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        require_kinds(self)
        require_whole(self, "image_size", "in_channels", "num_classes", "width", "num_stages", "blocks_per_stage")
        if self.width < MIN_WIDTH:
            raise ValueError(f"width must be at least {MIN_WIDTH}, got {self.width}")
        if self.image_size < 2 ** (self.num_stages - 1):
            raise ValueError(f"num_stages={self.num_stages} halves {self.image_size} pixels to less than one")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with a batch norm, and a residual connection; `stride` is the first one's."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNetTrunk(nn.Module):
    """The stages of a ResNet, without its head. Parameters have torchvision's names."""

    def __init__(self, in_channels: int, width: int, num_stages: int, blocks_per_stage: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.num_stages = num_stages
        self.out_channels = width
        for stage in range(num_stages):
            channels = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks_per_stage - 1)
            layer = []
            for stride in strides:
                layer.append(BasicBlock(self.out_channels, channels, stride))
                self.out_channels = channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def grid_size(image_size: int, num_stages: int) -> int:
        """Side of the last stage's map."""
        for _ in range(num_stages - 1):
            image_size = (image_size + 1) // 2
        return image_size

    def stages(self, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The map after each stage, `[batch, channels, height, width]`."""
        x = F.relu(self.bn1(self.conv1(images)))
        maps = []
        for stage in range(self.num_stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class ResNet(ResNetTrunk, Classifier):
    """Maps normalised pictures to class logits; the same names and numbers as torchvision's `ResNet`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config.in_channels, config.width, config.num_stages, config.blocks_per_stage)
        self.config = config
        self.fc = nn.Linear(self.out_channels, config.num_classes)
        if config.zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)

    def classify(self, features: Tensor) -> Float[Tensor, "batch classes"]:
        return self.fc(features.mean(dim=(2, 3)))
