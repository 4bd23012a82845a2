"""SAM 2 (Ravi et al., 2024) by `sam2`, for still pictures: stateless, and truly batched over prompts of one shape."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from core.runtime import import_torchvision, resolve_device
from core.segment.encoding import encoder_batches, encoding, parts
from core.segment.grounder import Image
from core.segment.sam2_stills import Sam2Features, StillDecoder, StillEncoder

# Prompts that the decoder takes at a time, and bytes of features that it is given for them: what bounds the memory of
# a call, which is several times these bytes. A CPU is faster with few bytes, which stay in its cache.
DECODER_ROWS = 64
DECODER_BYTES, DECODER_BYTES_ON_A_CPU = 256 * 2**20, 16 * 2**20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LOGIT_LIMIT = 32.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskPrompt:
    """What SAM 2 is asked about one object, in pixels of the picture.

    box_xyxy: `[4]`. points: `[n, 2]` as (x, y); point_labels: `[n]`, 1 inside the object, 0 outside it.
    mask_logits: `[low_res_size, low_res_size]`, a coarse mask as logits, never as booleans.
    """

    box_xyxy: np.ndarray | None = None
    points: np.ndarray | None = None
    point_labels: np.ndarray | None = None
    mask_logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.box_xyxy is None and self.points is None:
            raise ValueError("a prompt needs a box or points: a mask alone is unlike anything SAM 2 was trained on")
        if (self.points is None) != (self.point_labels is None):
            raise ValueError("points and point_labels go together")
        if self.mask_logits is not None and self.mask_logits.dtype == bool:
            raise ValueError("mask_logits must be logits, not booleans")


@dataclass(frozen=True, slots=True)
class MaskCandidates:
    """SAM 2's answers to one prompt: low-resolution logits, and the IoU that it predicts for each."""

    mask_logits: Float[Tensor, "masks low low"]
    iou_scores: Float[Tensor, " masks"]


class Sam2:
    """Prompts to masks. Keeps nothing of a call: safe to share among threads."""

    def __init__(self, model: Any, *, revision: str, device: torch.device, precision: str) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self._encoder, self._decoder = StillEncoder(model), StillDecoder(model)
        self.revision = revision
        self.device, self.precision = device, precision
        self.image_size: int = model.image_size
        self.low_res_size: int = 4 * model.sam_image_embedding_size

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path, *, config: str | None = None, device: str = "auto", precision: str = "auto"
    ) -> "Sam2":
        """Load a checkpoint: a folder with `config.yaml` and `model.safetensors`, a `.pt` file, or a name on the hub.

        Args:
            config: with a `.pt` file, the name of one of sam2's own configurations, such as
                `configs/sam2.1/sam2.1_hiera_t.yaml`, or a YAML file.
            precision: of the image encoder: `bf16`, `float32`, or `auto`; the decoder stays in float32.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or it does not fit the configuration.
        """
        import_torchvision()
        path = Path(checkpoint)
        if config is not None and not path.is_file():
            raise ValueError(f"config= (the setting sam2_config) goes with a file, and {checkpoint} is none")
        if path.is_dir():
            weights, config = path / "model.safetensors", str(path / "config.yaml")
        elif path.is_file():
            weights = path
            if config is None:
                raise ValueError(
                    f"{path} needs config= (the setting sam2_config): the name of the sam2 configuration that it was "
                    "trained with; a folder with config.yaml and model.safetensors needs none"
                )
        else:
            weights, config = _from_hub(str(checkpoint))
        model = build(config)
        try:
            model.load_state_dict(_read(weights))
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{weights} does not fit {config}: {error}") from error
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        name = path.name if path.exists() else str(checkpoint)
        return cls(model.float(), revision=f"{name}@{digest}", device=resolve_device(device), precision=precision)

    def encode_images(self, images: Sequence[Image]) -> list[Sam2Features]:
        """Encode pictures (uint8 RGB, any sizes) together; on a CPU, a few at a time."""
        batches = encoder_batches(images, self.image_size, self.device)
        return [features for batch in batches for features in self._encode(batch)]

    def _encode(self, images: Sequence[Image]) -> list[Sam2Features]:
        pixels = torch.stack([self._pixels(image) for image in images]).to(self.device)
        with encoding(self.device, self.precision):
            embed, high_res = self._encoder(pixels)
        # Copied, also where they are float32: a part of the batch, once it is kept, would keep all of the batch.
        return [
            Sam2Features(
                image_embed=embed[row].to(torch.float32, copy=True),
                high_res=tuple(level[row].to(torch.float32, copy=True) for level in high_res),
                size=(image.shape[0], image.shape[1]),
            )
            for row, image in enumerate(images)
        ]

    def decode(
        self, features: Sequence[Sam2Features], prompts: Sequence[MaskPrompt], *, multimask: bool = True
    ) -> list[MaskCandidates]:
        """Answer one prompt a row of `features`, in order. Prompts of one shape are decoded together."""
        groups: dict[tuple[int, bool], list[int]] = {}
        clicks = [self._clicks(prompt, feature.size) for prompt, feature in zip(prompts, features, strict=True)]
        for row, prompt in enumerate(prompts):
            groups.setdefault((len(clicks[row][1]), prompt.mask_logits is not None), []).append(row)
        answers: list[MaskCandidates | None] = [None] * len(prompts)
        largest = max((feature.nbytes for feature in features), default=1)
        most_bytes = DECODER_BYTES_ON_A_CPU if self.device.type == "cpu" else DECODER_BYTES
        at_most = max(1, min(DECODER_ROWS, most_bytes // largest))
        for (_, has_mask), rows in groups.items():
            for of_rows in parts(len(rows), at_most, self.device):
                part = rows[of_rows]
                points, labels = (
                    torch.stack(column).to(self.device) for column in zip(*(clicks[row] for row in part), strict=True)
                )
                masks = None
                if has_mask:
                    coarse = torch.from_numpy(np.stack([prompts[row].mask_logits for row in part]))  # type: ignore[misc]
                    masks = coarse[:, None].float().clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).to(self.device)
                with torch.inference_mode():
                    logits, scores = self._decoder(
                        [features[row] for row in part], points, labels, masks, multimask=multimask
                    )
                logits, scores = logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).cpu(), scores.cpu()
                for row, mask_logits, iou_scores in zip(part, logits, scores, strict=True):
                    answers[row] = MaskCandidates(mask_logits.clone(), iou_scores.clone())
        return [answer for answer in answers if answer is not None]

    def upsample(
        self, mask_logits: Float[Tensor, "masks low low"], size: tuple[int, int]
    ) -> Float[Tensor, "masks height width"]:
        """Logits at the picture's own size."""
        return F.interpolate(mask_logits[None], size=size, mode="bilinear", align_corners=False)[0]

    def _pixels(self, image: Image) -> Tensor:
        scaled = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().div_(255)
        side = (self.image_size, self.image_size)
        if scaled.shape[-2:] != side:
            # As torchvision's Resize on a tensor, which sam2's own transforms use.
            scaled = F.interpolate(scaled, size=side, mode="bilinear", align_corners=False, antialias=True)
        return (scaled[0] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def _clicks(self, prompt: MaskPrompt, size: tuple[int, int]) -> tuple[Float[Tensor, "n 2"], Int64[Tensor, " n"]]:
        """Points at the model's own scale; a box goes first, as two points with the labels 2 and 3."""
        height, width = size
        points, labels = [np.empty((0, 2))], [np.empty(0)]
        if prompt.box_xyxy is not None:
            points.append(np.asarray(prompt.box_xyxy, float).reshape(2, 2))
            labels.append(np.array([2, 3]))
        if prompt.points is not None and prompt.point_labels is not None:
            points.append(np.asarray(prompt.points, float).reshape(-1, 2))
            labels.append(np.asarray(prompt.point_labels))
        scale = self.image_size / np.array([width, height])
        return (
            torch.from_numpy(np.concatenate(points) * scale).float(),
            torch.from_numpy(np.concatenate(labels)).long(),
        )


def build(config: str) -> Any:
    """The untrained model that a configuration describes: a name of one of sam2's own, or a YAML file.

    Raises:
        ValueError: the file cannot be read, names a class that is not sam2's, or describes no model of sam2's.
    """
    import_torchvision()
    import yaml
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from sam2.modeling.sam2_base import SAM2Base

    file = Path(config)
    if not file.is_file():
        import sam2

        file = Path(sam2.__file__).parent / config
    try:
        plain = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the sam2 configuration {config!r} cannot be read: {error}") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("model"), dict):
        raise ValueError(f"{config}: a sam2 configuration has a section `model`")
    _allow_only_sam2(plain["model"], config)
    model = plain["model"]
    model["sam_mask_decoder_extra_args"] = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
        **(model.get("sam_mask_decoder_extra_args") or {}),
    }
    try:
        built = instantiate(model)
    except InstantiationException as error:
        raise ValueError(f"{config} does not describe a model of sam2's: {error}") from error
    if not isinstance(built, SAM2Base):
        raise ValueError(f"{config} does not describe a model of sam2's, but a {type(built).__name__}")
    return built


def _allow_only_sam2(node: object, config: str) -> None:
    """A configuration names classes to be called: nothing but sam2's own is called for a file from outside."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith("sam2.modeling."):
            raise ValueError(f"{config} asks for {target!r}: only classes of sam2.modeling are allowed")
        for value in node.values():
            _allow_only_sam2(value, config)
    elif isinstance(node, list):
        for value in node:
            _allow_only_sam2(value, config)


def _read(weights: Path) -> dict[str, Tensor]:
    if weights.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(weights)
        except SafetensorError as error:
            raise ValueError(f"{weights} cannot be read: {error}") from error
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # all kinds on damaged bytes; on objects, with the advice to let them run code
        raise ValueError(f"{weights} cannot be read: it is damaged, or holds other things than tensors") from error
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise ValueError(f"{weights} cannot be read: it holds no tensors under the name 'model'")
    return tensors


def _from_hub(name: str) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    if name not in HF_MODEL_ID_TO_FILENAMES:
        known = ", ".join(HF_MODEL_ID_TO_FILENAMES)
        raise ValueError(f"there is no folder or file {name!r}, nor is it one of sam2's names: {known}")
    config, file = HF_MODEL_ID_TO_FILENAMES[name]
    try:
        return Path(hf_hub_download(repo_id=name, filename=file)), config
    except OSError as error:
        raise ValueError(f"{name} cannot be downloaded, nor is it in the hub's cache: {error}") from error
