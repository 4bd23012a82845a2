"""The small CLIPSeg of the `demo` preset: its shape, its tokenizer, and its training on generated scenes.

CLIPSeg (Lueddecke & Ecker, 2022) stands on towers that already know things. Trained end to end from nothing it stalls,
so here the towers have teachers of their own. On every patch, three linear heads name the shape, the colour and the
size of what lies there; they are dropped when the weights are saved. And each prompt's embedding is held against every
patch's, as CLIP (Radford et al., 2021) holds them against whole pictures: by the decoder alone the text tower does not
learn to tell apart shapes that look alike. The decoder learns beside them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F

from core.runtime import autocast, import_torchvision
from core.segment.scenes import COLOURS, SHAPES, SIZES, Query, Scene, draw_queries, query_masks, vocabulary

IMAGE_SIZE, PATCH_SIZE = 128, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_TOKENS = 16


def build_tokenizer() -> Any:
    """CLIP's byte-pair tokenizer with a vocabulary of its own: each word that scenes use is one token."""
    import_torchvision()
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    merges = _merges(sorted({*vocabulary(), "a", "the"}))
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(first + second for first, second in merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    # The annotation asks for strings; what `tokenizers` takes are pairs.
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)  # pyright: ignore[reportArgumentType]


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that build each word from its end, so that those of one word never break another."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        tail = word[-1] + "</w>"
        for letter in reversed(word[:-1]):
            merges[letter, tail] = None
            tail = letter + tail
    return sorted(merges, key=lambda pair: len(pair[1]))


def build_processor() -> Any:
    """Squash to the model's size, ImageNet's mean and standard deviation: what CLIPSeg's own checkpoints do."""
    import_torchvision()
    from transformers import CLIPSegProcessor
    from transformers.models.vit.image_processing_vit import ViTImageProcessor

    images = ViTImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=list(MEAN), image_std=list(STD), resample=2
    )
    return CLIPSegProcessor(image_processor=images, tokenizer=build_tokenizer())


def build_config(tokenizer: Any) -> Any:
    """1.8 million parameters; the picture is 16x16 patches."""
    import_torchvision()
    from transformers import CLIPSegConfig

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 128,
        "hidden_act": "gelu",
    }
    return CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=128,
        extract_layers=[1, 3, 5],
        reduce_dim=64,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
    )


class ClipSegTraining(nn.Module):
    """The model with its dense teachers, and the loss of a batch of scenes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        from transformers import AttentionInterface, CLIPSegForImageSegmentation

        config = build_config(self.tokenizer)
        self.model = CLIPSegForImageSegmentation(config)
        AttentionInterface.register("half_precision", _half_precision_attention)
        # Not the text tower: a kernel that transformers does not know gets no causal mask from it.
        towers = (self.model.clip.vision_model, self.model.decoder.layers)
        for module in (module for tower in towers for module in tower.modules()):
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = "half_precision"
        _initialise(self.model)
        self.heads = nn.ModuleList(nn.Linear(128, 1 + len(names)) for names in (SHAPES, COLOURS, SIZES))
        self.word_bias = nn.Parameter(torch.tensor(-3.0))  # most patches are not what a prompt names

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 size size"],
        tokens: Int64[Tensor, "prompts length"],
        targets: Float[Tensor, "prompts size size"],
        labels: Sequence[Float[Tensor, "batch classes rows columns"]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts. Every picture has as many prompts, one after the other.

        Args:
            targets: share of each pixel that the prompt names, in [0, 1].
            labels: share of each patch that has each shape, colour and size.
        """
        model = self.model
        each = len(tokens) // len(pixels)
        with autocast(pixels.device, "auto"):
            seen = model.clip.vision_model(pixel_values=pixels, output_hidden_states=True)
            activations = [seen.hidden_states[layer + 1] for layer in model.config.extract_layers]
            texts = model.clip.text_model(input_ids=tokens, attention_mask=None)
            words = model.clip.text_projection(texts.pooler_output)
            logits = model.decoder([_repeat(a, each) for a in activations], words).logits
            patches = activations[-1][:, 1:]
            named = [head(patches) for head in self.heads]
            projected = model.clip.visual_projection(patches)
            similar = (_repeat(projected, each) @ words[:, :, None])[..., 0] / math.sqrt(words.shape[1])
        parts = {}
        for name, answer, label in zip(("shape", "colour", "size"), named, labels, strict=True):
            parts[name] = F.cross_entropy(answer.float().transpose(1, 2), label.flatten(2))
        named_shares = F.avg_pool2d(targets[:, None], PATCH_SIZE).flatten(1)
        parts["words"] = F.binary_cross_entropy_with_logits(similar.float() + self.word_bias, named_shares)
        logits = logits.float()
        parts["pixel"] = F.binary_cross_entropy_with_logits(logits, targets)
        shares, wanted = logits.sigmoid().flatten(1), targets.flatten(1)
        present = (wanted.sum(1) > 0).float()
        dice = 1 - (2 * (shares * wanted).sum(1) + 1) / (shares.sum(1) + wanted.sum(1) + 1)
        parts["dice"] = (dice * present).sum() / present.sum().clamp(min=1)
        towers = parts["shape"] + parts["colour"] + 0.3 * parts["size"] + 4 * parts["words"]
        loss = towers + 4 * parts["pixel"] + 0.5 * parts["dice"]
        return loss, {name: part.detach() for name, part in parts.items()}

    def save(self, folder: Path) -> None:
        """Write the folder that `from_pretrained` reads; weights in half precision, read back as float32."""
        fresh = type(self.model)(build_config(self.tokenizer))
        fresh.load_state_dict(self.model.state_dict())
        fresh.half().save_pretrained(folder, safe_serialization=True)
        build_processor().save_pretrained(folder)


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Linear layers to keep the variance of what passes; CLIP's own start is for towers ten times as wide."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if name.endswith(("out_proj", "fc2")):
                module.weight.mul_(0.3)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3 if "token" in name else 0.05)


class ClipSegBatches:
    """Batches of scenes with prompts; a batch depends on the seed and its number alone."""

    def __init__(self, images: UInt8[np.ndarray, "n h w 3"], maps: UInt8[np.ndarray, "n h w"], scenes: list[Scene]):
        self.images, self.maps, self.scenes = torch.from_numpy(images), torch.from_numpy(maps), scenes
        self.tokenizer = build_tokenizer()
        self.cache: dict[str, list[int]] = {}
        num = 1 + max(len(scene.objects) for scene in scenes)
        self.names = torch.zeros(3, len(scenes), num, dtype=torch.long)
        for row, scene in enumerate(scenes):
            for column, thing in enumerate(scene.objects):
                self.names[0, row, column + 1] = 1 + SHAPES.index(thing.shape)
                self.names[1, row, column + 1] = 1 + list(COLOURS).index(thing.colour)
                self.names[2, row, column + 1] = 1 + list(SIZES).index(thing.size)

    def at(self, step: int, batch_size: int, num_prompts: int) -> dict[str, Any]:
        """The arguments of `ClipSegTraining.forward`; about half of the prompts are absent."""
        rng = np.random.default_rng([step, 3])
        chosen = rng.integers(len(self.scenes), size=batch_size)
        pixels, maps, wanted = [], [], []
        texts: list[str] = []
        for index in chosen:
            rows, columns, whole = self._window(self.scenes[index], rng)
            seen, object_map = self.images[index, rows, columns], self.maps[index, rows, columns]
            if rng.uniform() < 0.5:
                seen, object_map = seen.flip(1), object_map.flip(1)
            queries = _choose(self.scenes[index], rng, num_prompts, use_sizes=whole)
            texts += [self._spoken(query, rng) for query in queries]
            truth = torch.from_numpy(query_masks(queries, self.scenes[index], object_map.numpy()))
            wanted.append(_resize(truth[None].float(), IMAGE_SIZE)[0])
            pixels.append(_resize(seen.permute(2, 0, 1)[None].float() / 255, IMAGE_SIZE))
            maps.append(F.interpolate(object_map[None, None], size=IMAGE_SIZE // 2, mode="nearest")[0, 0])
        points = torch.stack(maps).long()
        return {
            "pixels": (torch.cat(pixels) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None],
            "tokens": self.encode(texts),
            "targets": torch.cat(wanted),
            "labels": [
                _patch_shares(names[chosen], points, 1 + len(known))
                for names, known in zip(self.names, (SHAPES, COLOURS, SIZES), strict=True)
            ],
        }

    def _window(self, scene: Scene, rng: np.random.Generator) -> tuple[slice, slice, bool]:
        """The whole picture, or a square of it as a zoom would show, most often with some object in its middle."""
        full = self.images.shape[1]
        if rng.uniform() < 0.5:
            return slice(0, full), slice(0, full), True
        side = int(rng.uniform(0.22, 0.9) * full)
        middle = rng.uniform(0, full, 2)
        if rng.uniform() < 0.7:
            thing = scene.objects[rng.integers(len(scene.objects))]
            middle = np.array([thing.y, thing.x]) * full + rng.uniform(-0.15, 0.15, 2) * side
        top, left = (int(np.clip(m - side / 2, 0, full - side)) for m in middle)
        return slice(top, top + side), slice(left, left + side), False

    def encode(self, texts: list[str]) -> Int64[Tensor, "prompts length"]:
        """Token numbers, padded at the end."""
        for text in texts:
            if text not in self.cache:
                self.cache[text] = self.tokenizer(text)["input_ids"]
        rows = [self.cache[text] for text in texts]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])

    def _spoken(self, query: Query, rng: np.random.Generator) -> str:
        return str(rng.choice(["", "", "", "", "a ", "the "])) + query.text


def _patch_shares(names: Tensor, points: Tensor, classes: int) -> Float[Tensor, "batch classes rows columns"]:
    """What share of each patch has which name; `points`: which object is seen at each."""
    named = names[torch.arange(len(points))[:, None, None], points]
    shares = F.one_hot(named, classes).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(shares, PATCH_SIZE // 2)


def _choose(scene: Scene, rng: np.random.Generator, num: int, *, use_sizes: bool) -> list[Query]:
    num_absent = int(rng.integers(num // 2, (num + 1) // 2 + 1))
    queries = draw_queries(scene, rng, num_present=num - num_absent, num_absent=num_absent, use_sizes=use_sizes)
    return [queries[i % len(queries)] for i in range(num)]


def _half_precision_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention whose softmax stays in the inputs' precision: on a CPU twice as fast to train as the fused kernel."""
    with torch.autocast(query.device.type, enabled=False):
        scores = (query * scaling) @ key.mT
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).contiguous(), None


def _repeat(x: Tensor, times: int) -> Tensor:
    """Each row `times` times; unlike indexing, its backward pass is a plain sum."""
    return x[:, None].expand(-1, times, *x.shape[1:]).flatten(0, 1)


def _resize(x: Tensor, size: int) -> Tensor:
    if x.shape[-1] == 2 * size:
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
