"""CLIPSeg (Lueddecke & Ecker, 2022) by `transformers`, with each picture encoded once for all its prompts."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image as PillowImage
from torch import Tensor

from core.runtime import import_torchvision, resolve_device
from core.segment.encoding import encoder_batches, encoding
from core.segment.grounder import Image
from core.segment.prompt_tokens import PromptTokens

# Rows of (picture, prompt) that the decoder takes at a time: what bounds the memory of a call. A CPU is faster with a
# few, which stay in its cache; so few sizes need not be made fewer by `encoding.parts`.
DECODER_ROWS, DECODER_ROWS_ON_A_CPU = 64, 4
CACHED_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class ClipSegFeatures:
    """What the decoder reads of one picture: `[layers, 1 + patches, dim]`."""

    activations: Float[Tensor, "layers tokens dim"]

    @property
    def nbytes(self) -> int:
        return self.activations.nbytes


class ClipSeg:
    """Text prompts to heatmaps. Keeps the embeddings of texts and nothing else; safe to share among threads."""

    def __init__(self, model: Any, processor: Any, *, revision: str, device: torch.device, precision: str) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor = processor
        self.revision = revision
        self.device, self.precision = device, precision
        self.image_size: int = model.config.vision_config.image_size
        self._max_tokens: int = model.config.text_config.max_position_embeddings
        self.prompt_tokens = PromptTokens(processor.tokenizer.backend_tokenizer, self._max_tokens)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "auto", precision: str = "auto") -> "ClipSeg":
        """Load a checkpoint by its name on the hub, from the hub's cache, or from a folder. Safetensors only.

        Args:
            precision: of the vision tower: `bf16`, `float32` or `auto`; text tower and decoder stay in float32.

        Raises:
            ValueError: there is no such checkpoint, it is damaged or lacks something, or it is not CLIPSeg's.
        """
        import_torchvision()
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        try:
            model, processor = _load(str(name))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
            raise ValueError(f"no CLIPSeg checkpoint can be loaded from {str(name)!r}: {error}") from error
        folder = Path(name)
        revision = _digest(folder) if folder.is_dir() else f"{name}@{model.config._commit_hash}"
        return cls(model.float(), processor, revision=revision, device=resolve_device(device), precision=precision)

    def encode_images(self, images: Sequence[Image]) -> list[ClipSegFeatures]:
        """Encode pictures (uint8 RGB, any sizes) together; on a CPU, a few at a time."""
        batches = encoder_batches(images, self.image_size, self.device)
        return [features for batch in batches for features in self._encode(batch)]

    def _encode(self, images: Sequence[Image]) -> list[ClipSegFeatures]:
        """Layers after the last one that is read are not run."""
        pictures = [PillowImage.fromarray(image) for image in images]
        pixels = self.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        config = self.model.config
        tower = self.model.clip.vision_model
        with encoding(self.device, self.precision):
            hidden = tower.pre_layrnorm(tower.embeddings(pixels.to(self.device), interpolate_pos_encoding=True))
            read = []
            for index, layer in enumerate(tower.encoder.layers[: max(config.extract_layers) + 1]):
                hidden = layer(hidden, attention_mask=None)
                if index in config.extract_layers:
                    read.append(hidden)
        stacked = torch.stack(read, dim=1).float()
        # A copy for each: a part of the batch, once it is kept, would keep all of the batch.
        return [ClipSegFeatures(activations.clone()) for activations in stacked]

    def encode_texts(self, prompts: Sequence[str]) -> Float[Tensor, "prompts dim"]:
        """Embeddings, kept for the next time a prompt is asked. Tokens beyond `prompt_tokens.limit` are cut off."""
        keys = [" ".join(prompt.split()).lower() for prompt in prompts]
        with self._lock:
            known = {key: self._texts[key] for key in keys if key in self._texts}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            tokens = self.processor.tokenizer(
                missing, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
            ).to(self.device)
            with torch.inference_mode():
                fresh = self.model.clip.get_text_features(
                    tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).pooler_output
            known |= {key: embedding.clone() for key, embedding in zip(missing, fresh, strict=True)}
        with self._lock:
            for key in keys:
                self._texts[key] = known[key]
                self._texts.move_to_end(key)
            while len(self._texts) > CACHED_TEXTS:
                self._texts.popitem(last=False)
        return torch.stack([known[key] for key in keys])

    def heatmaps(
        self, features: Sequence[ClipSegFeatures], prompts: Sequence[Sequence[str]]
    ) -> list[Float[Tensor, "prompts size size"]]:
        """Logits of every prompt of every picture, float32."""
        rows = [index for index, asked in enumerate(prompts) for _ in asked]
        if not rows:
            return [torch.empty(0, self.image_size, self.image_size) for _ in prompts]
        texts = self.encode_texts([prompt for asked in prompts for prompt in asked])
        at_once = DECODER_ROWS_ON_A_CPU if self.device.type == "cpu" else DECODER_ROWS
        chunks = []
        with torch.inference_mode():
            for start in range(0, len(rows), at_once):
                part = slice(start, start + at_once)
                stacked = torch.stack([features[index].activations for index in rows[part]], dim=1).to(self.device)
                logits = self.model.decoder(list(stacked), texts[part]).logits
                chunks.append(logits.float().reshape(-1, *logits.shape[-2:]).cpu())
        return list(torch.cat(chunks).clone().split([len(asked) for asked in prompts]))


def _load(name: str) -> tuple[Any, Any]:
    """Model and processor. What a checkpoint lacks, `transformers` makes up: here that is a ValueError."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

    config, _ = CLIPSegConfig.get_config_dict(name)
    kind = config.get("model_type", CLIPSegConfig.model_type)
    if kind != CLIPSegConfig.model_type:
        raise ValueError(f"it is a model of the type {kind!r}")
    loaded: Any = CLIPSegForImageSegmentation.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"it lacks {len(missing)} tensors, such as {missing[0]}")
    processor: Any = CLIPSegProcessor.from_pretrained(name)
    if len(processor.tokenizer) <= len(processor.tokenizer.all_special_tokens):
        raise ValueError("its tokenizer knows no words")
    return model, processor


def _digest(folder: Path) -> str:
    file = folder / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "unknown"
    return f"{folder.name}@{digest}"
