"""The small SAM 2 of the `demo` preset: its configuration, and its training on generated scenes.

Every step draws one kind of prompt (a box, points, a coarse mask, or several together) for objects of a batch of
scenes, made as faulty as a coarse heatmap would make them. As in SAM (Kirillov et al., 2023) the best of three masks is
trained, and a head learns to predict the intersection over union of each.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.runtime import autocast
from core.segment.sam2 import MEAN, STD
from core.segment.scenes import Scene

IMAGE_SIZE, D_MODEL = 256, 64
LOW_RES = IMAGE_SIZE // 4
OBJECTS_PER_SCENE = 3
KINDS = ("box", "points", "box+points", "box+mask", "points+mask", "box+points+mask")


def demo_config() -> dict[str, Any]:
    """What `config.yaml` of the weights holds: SAM 2's own classes, at 256 pixels and a quarter of the width."""
    position = {"_target_": "sam2.modeling.position_encoding.PositionEmbeddingSine", "normalize": True, "scale": None}
    attention = {
        "_target_": "sam2.modeling.sam.transformer.RoPEAttention",
        "feat_sizes": [16, 16],
        "rope_theta": 10000.0,
        "embedding_dim": D_MODEL,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": 0.0,
    }
    return {
        "_target_": "sam2.modeling.sam2_base.SAM2Base",
        "image_size": IMAGE_SIZE,
        "num_maskmem": 1,
        "image_encoder": {
            "_target_": "sam2.modeling.backbones.image_encoder.ImageEncoder",
            "scalp": 1,
            "trunk": {
                "_target_": "sam2.modeling.backbones.hieradet.Hiera",
                "embed_dim": 32,
                "num_heads": 1,
                "stages": [1, 2, 4, 1],
                "global_att_blocks": [],
                "window_spec": [8, 4, 16, 8],
                "window_pos_embed_bkg_spatial_size": [8, 8],
            },
            "neck": {
                "_target_": "sam2.modeling.backbones.image_encoder.FpnNeck",
                "position_encoding": {**position, "num_pos_feats": D_MODEL, "temperature": 10000},
                "d_model": D_MODEL,
                "backbone_channel_list": [256, 128, 64, 32],
                "fpn_top_down_levels": [2, 3],
                "fpn_interp_model": "nearest",
            },
        },
        # Videos only, never run on stills: as small as the classes allow.
        "memory_attention": {
            "_target_": "sam2.modeling.memory_attention.MemoryAttention",
            "d_model": D_MODEL,
            "num_layers": 1,
            "pos_enc_at_input": True,
            "layer": {
                "_target_": "sam2.modeling.memory_attention.MemoryAttentionLayer",
                "activation": "relu",
                "dim_feedforward": 16,
                "dropout": 0.0,
                "pos_enc_at_attn": False,
                "d_model": D_MODEL,
                "self_attention": attention,
                "cross_attention": {**attention, "rope_k_repeat": True, "kv_in_dim": 16},
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
            },
        },
        "memory_encoder": {
            "_target_": "sam2.modeling.memory_encoder.MemoryEncoder",
            "in_dim": D_MODEL,
            "out_dim": 16,
            "position_encoding": {**position, "num_pos_feats": 16},
            "mask_downsampler": {
                "_target_": "sam2.modeling.memory_encoder.MaskDownSampler",
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
                "embed_dim": D_MODEL,
            },
            "fuser": {
                "_target_": "sam2.modeling.memory_encoder.Fuser",
                "layer": {"_target_": "sam2.modeling.memory_encoder.CXBlock", "dim": D_MODEL},
                "num_layers": 1,
            },
        },
        "directly_add_no_mem_embed": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": True,
        "iou_prediction_use_sigmoid": True,
        "multimask_min_pt_num": 0,
        "multimask_max_pt_num": 1,
    }


class Sam2Training(nn.Module):
    """The model, and the loss of a batch of prompted scenes."""

    def __init__(self) -> None:
        super().__init__()
        from hydra.utils import instantiate

        self.model = instantiate(demo_config())

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 size size"],
        points: Float[Tensor, "prompts n 2"],
        labels: Float[Tensor, "prompts n"],
        masks: Float[Tensor, "prompts 1 low low"] | None,
        targets: Float[Tensor, "prompts half half"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts. Every picture has as many prompts, one after the other.

        Args:
            points, labels: as the prompt encoder takes them; a box is two points with the labels 2 and 3.
            targets: share of each pixel that belongs to the object, at half the picture's resolution.
        """
        model = self.model
        # Written out, attention is faster to train on a CPU than the fused kernel.
        with autocast(pixels.device, "auto"), sdpa_kernel(SDPBackend.MATH):
            out = model.forward_image(pixels)
            _, maps, _, sizes = model._prepare_backbone_features(out)
            maps[-1] = maps[-1] + model.no_mem_embed
            features = [m.permute(1, 2, 0).reshape(len(pixels), -1, *s) for m, s in zip(maps, sizes, strict=True)]
            each = len(points) // len(pixels)
            *high, embedding = [f[:, None].expand(-1, each, *f.shape[1:]).flatten(0, 1) for f in features]
            sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=masks)
            logits, predicted, _, _ = model.sam_mask_decoder.predict_masks(
                image_embeddings=embedding,
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                repeat_image=False,
                high_res_features=high,
            )
        logits, predicted = logits.float(), predicted.float()
        small = F.avg_pool2d(targets[:, None], targets.shape[-1] // LOW_RES)
        best = 1 + _mask_loss(logits[:, 1:], small).argmin(1)
        rows = torch.arange(len(logits))
        chosen = torch.stack([logits[:, 0], logits[rows, best]], dim=1)
        chosen = F.interpolate(chosen, size=targets.shape[-2:], mode="bilinear", align_corners=False)
        mask_loss = _mask_loss(chosen, targets[:, None])
        with torch.no_grad():
            hit, wanted = logits > 0, small > 0.5
            true_iou = (hit & wanted).sum((2, 3)) / (hit | wanted).sum((2, 3)).clamp(min=1)
            final = ((chosen[:, 1] > 0) & (targets > 0.5)).sum((1, 2)) / ((chosen[:, 1] > 0) | (targets > 0.5)).sum(
                (1, 2)
            ).clamp(min=1)
        iou_loss = F.mse_loss(predicted, true_iou)
        loss = mask_loss.mean() + iou_loss
        return loss, {
            "mask": mask_loss.mean().detach(),
            "iou_error": iou_loss.detach().sqrt(),
            "best_iou": final.mean(),
        }

    def save(self, folder: Path) -> None:
        """Write `config.yaml` and `model.safetensors`, in half precision; read back as float32."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": demo_config()}, sort_keys=False))
        state = {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors")


def _mask_loss(logits: Float[Tensor, "n masks h w"], targets: Float[Tensor, "n one h w"]) -> Float[Tensor, "n masks"]:
    """Cross-entropy around the object plus the Dice loss, for each mask."""
    wanted = targets.expand_as(logits)
    pixel = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((2, 3))
    # A small object is a small share of the picture: its pixels count as if the picture were about ten times its size.
    pixel = pixel / (10 * wanted.mean((2, 3))).clamp(0.1, 1)
    shares = logits.sigmoid()
    dice = 1 - (2 * (shares * wanted).sum((2, 3)) + 1) / (shares.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    return 3 * pixel + dice


class Sam2Batches:
    """Batches of prompted scenes; a batch depends on its number alone."""

    def __init__(self, images: UInt8[np.ndarray, "n h w 3"], maps: UInt8[np.ndarray, "n h w"], scenes: list[Scene]):
        self.images, self.maps, self.scenes = torch.from_numpy(images), torch.from_numpy(maps), scenes

    def at(self, step: int, batch_size: int) -> dict[str, Any]:
        """The arguments of `Sam2Training.forward`."""
        rng = np.random.default_rng([step, 4])
        chosen = rng.integers(len(self.scenes), size=batch_size)
        images, maps = self.images[chosen], self.maps[chosen]
        if rng.uniform() < 0.5:
            images, maps = images.flip(2), maps.flip(2)
        if rng.uniform() < 0.35:  # as the pipeline does when it zooms in on something small
            side = 8 * int(rng.integers(12, 29))
            top, left = (int(rng.integers(0, IMAGE_SIZE - side + 1)) for _ in range(2))
            images, maps = (
                images[:, top : top + side, left : left + side],
                maps[:, top : top + side, left : left + side],
            )
            maps = F.interpolate(maps[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="nearest")[:, 0]
        pixels = images.permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != IMAGE_SIZE:
            pixels = F.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        kind = str(rng.choice(KINDS))
        num_positive, num_negative = int(rng.integers(1, 4)), int(rng.integers(0, 3))
        prompts = []
        for object_map in maps.numpy():
            present = [i for i in np.unique(object_map) if i and (object_map == i).sum() > 60]
            for _ in range(OBJECTS_PER_SCENE):
                # A crop may show no object at all: then the background is asked for, as a careless click would.
                mask = object_map == (rng.choice(present) if present else 0)
                prompts.append((mask, *_clicks(mask, kind, num_positive, num_negative, rng)))
        targets = torch.from_numpy(np.stack([mask for mask, _, _ in prompts])).float()
        coarse = _coarse_logits(F.avg_pool2d(targets[:, None], 4), rng) if "mask" in kind else None
        return {
            "pixels": pixels,
            "points": torch.from_numpy(np.stack([points for _, points, _ in prompts])).float(),
            "labels": torch.from_numpy(np.stack([labels for _, _, labels in prompts])).float(),
            "masks": coarse,
            "targets": F.avg_pool2d(targets[:, None], 2)[:, 0],
        }


def _clicks(
    mask: np.ndarray, kind: str, num_positive: int, num_negative: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points `[n, 2]` as (x, y) pixels and their labels `[n]`: a box's corners, clicks in and out of the object."""
    rows, columns = np.nonzero(mask)
    low, high = np.array([columns.min(), rows.min()]), np.array([columns.max() + 1, rows.max() + 1])
    points, labels = [], []
    if "box" in kind:
        slack = 2 + rng.uniform(0, 0.12) * (high - low)
        points += [low + rng.uniform(-1, 1, 2) * slack, high + rng.uniform(-1, 1, 2) * slack]
        labels += [2, 3]
    if "points" in kind:
        for _ in range(num_positive):
            pick = rng.integers(len(rows))
            points.append(np.array([columns[pick], rows[pick]]) + 0.5)
        reach = 0.5 * (high - low)
        for _ in range(num_negative):
            x, y = low
            for _ in range(10):
                x, y = np.clip(rng.uniform(low - reach, high + reach), 0, IMAGE_SIZE - 1)
                if not mask[int(y), int(x)]:
                    break
            points.append(np.array([x, y]))
        labels += [1] * num_positive + [0] * num_negative
    return np.stack(points).clip(0, IMAGE_SIZE), np.array(labels)


def _coarse_logits(shares: Float[Tensor, "n 1 low low"], rng: np.random.Generator) -> Float[Tensor, "n 1 low low"]:
    """The object's mask as a coarse heatmap would have it: moved, blurred, noisy, more or less sure of itself."""
    dy, dx = rng.integers(-2, 3, 2)
    moved = torch.roll(shares, (int(dy), int(dx)), dims=(2, 3))
    width = int(rng.choice([1, 3, 5, 7]))
    blurred = F.avg_pool2d(moved, width, stride=1, padding=width // 2)
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 1.5), tuple(shares.shape))).float()
    return (torch.logit(blurred, eps=0.01) * float(rng.uniform(0.6, 1.6)) + noise).clamp(-32, 32)
