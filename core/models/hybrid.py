"""Convolutions first, attention after: the feature map of a convolutional trunk becomes the tokens of a transformer."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from core.checks import require_kinds, require_one_of, require_whole
from core.models.convnet import ConvTrunk
from core.models.resnet import MIN_WIDTH, ResNetTrunk
from core.models.transformer import TokenClassifier, TransformerConfig

TRUNKS = ("cnn", "residual_cnn", "resnet")


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig(TransformerConfig):
    """Shape of a hybrid.

    trunk: `cnn` (plain) and `residual_cnn` are those of `core.models.convnet`, `resnet` that of `core.models.resnet`.
    trunk_width, trunk_stages: channels of the trunk's first stage, and how many stages it has.
    trunk_whiten: whether the two `cnn` trunks begin by whitening.
    blocks: `explicit` (our blocks), `encoder` (PyTorch's `nn.TransformerEncoder`) or `none`: global pooling in the
        transformer's place, the control that tells the transformer's share.
    """

    image_size: int = 32
    in_channels: int = 3
    num_classes: int = 10
    trunk: str = "cnn"
    trunk_width: int = 64
    trunk_stages: int = 2
    trunk_whiten: bool = True
    blocks: str = "explicit"

    def __post_init__(self) -> None:
        require_kinds(self)
        require_whole(self, "image_size", "in_channels", "num_classes", "trunk_width", "trunk_stages")
        require_one_of(self, "trunk", TRUNKS)
        require_one_of(self, "blocks", ("explicit", "encoder", "none"))
        if self.trunk == "resnet" and self.trunk_width < MIN_WIDTH:
            raise ValueError(f"trunk_width must be at least {MIN_WIDTH} for trunk='resnet', got {self.trunk_width}")
        if self.grid_size < 1:
            raise ValueError(f"trunk_stages={self.trunk_stages} halves {self.image_size} pixels to less than one")
        if self.blocks == "encoder" and (self.layer_scale is not None or self.qk_norm or self.drop_path_rate):
            raise ValueError(
                "blocks='encoder' is PyTorch's own, which has no layer_scale, qk_norm or drop_path_rate; got "
                f"layer_scale={self.layer_scale}, qk_norm={self.qk_norm}, drop_path_rate={self.drop_path_rate}"
            )
        if self.blocks == "none" and (self.drop_path_rate or self.patch_drop_rate):
            raise ValueError(
                "blocks='none' has no transformer that drop_path_rate or patch_drop_rate could act on; got "
                f"drop_path_rate={self.drop_path_rate}, patch_drop_rate={self.patch_drop_rate}"
            )
        TransformerConfig.__post_init__(self)  # `super()` fails in a dataclass with slots

    @property
    def grid_size(self) -> int:
        """Tokens along one side."""
        if self.trunk == "resnet":
            return ResNetTrunk.grid_size(self.image_size, self.trunk_stages)
        return ConvTrunk.grid_size(self.image_size, self.trunk_stages, whiten=self.trunk_whiten)


class Hybrid(TokenClassifier):
    """Maps normalised pictures to class logits: trunk, projection to `embed_dim`, transformer, head."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk: ResNetTrunk | ConvTrunk
        if config.trunk == "resnet":
            self.trunk = ResNetTrunk(config.in_channels, config.trunk_width, config.trunk_stages, blocks_per_stage=2)
        else:
            self.trunk = ConvTrunk(
                config.in_channels,
                config.trunk_width,
                config.trunk_stages,
                residual=config.trunk == "residual_cnn",
                whiten=config.trunk_whiten,
            )
        if config.blocks == "none":
            self.head = nn.Linear(self.trunk.out_channels, config.num_classes)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            return
        self.proj = nn.Linear(self.trunk.out_channels, config.embed_dim)
        encoder = config.blocks == "encoder"
        self._add_transformer(config, grid_size=config.grid_size, num_classes=config.num_classes, encoder=encoder)
        self._initialise_transformer()

    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        return self.proj(self.trunk.stages(images)[-1].flatten(2).transpose(1, 2))

    def stages(self, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        return self.trunk.stages(images) if self.config.blocks == "none" else super().stages(images)

    def classify(self, features: Tensor) -> Float[Tensor, "batch classes"]:
        return self.head(features.mean(dim=(2, 3))) if self.config.blocks == "none" else super().classify(features)
