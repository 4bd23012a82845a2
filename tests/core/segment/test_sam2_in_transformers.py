"""A second opinion on our SAM 2: the same weights in `transformers`' own implementation."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.full_size import SAM2_TINY
from core.segment.sam2 import MaskPrompt, Sam2

SHARED_POSITIONS = "shared_image_embedding.positional_embedding"
# What sam2 calls its parts, as patterns, and what transformers calls them.
RENAMED = (
    (r"^image_encoder\.trunk", "vision_encoder.backbone"),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv", r"vision_encoder.neck.convs.\1"),
    (r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", SHARED_POSITIONS),
    (r"^sam_prompt_encoder", "prompt_encoder"),
    (r"^sam_mask_decoder", "mask_decoder"),
    (r"^no_mem_embed", "no_memory_embedding"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"\.norm(\d|_final)", r".layer_norm\1"),
    (r"\.out_proj", ".o_proj"),
    (r"mlp\.layers\.0", "mlp.proj_in"),
    (r"mlp\.layers\.1", "mlp.proj_out"),
    (r"(mlps\.\d|_head)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d|_head)\.layers\.1", r"\1.layers.0"),
    (r"(mlps\.\d|_head)\.layers\.2", r"\1.proj_out"),
)
UNUSED_ON_STILLS = re.compile("memory|maskmem|mask_downsample|obj_ptr|no_obj|no_mem_pos|point_embeddings")


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a sam2 model under the names that `Sam2Model` has for them."""
    theirs = {}
    for name, value in weights.items():
        if UNUSED_ON_STILLS.search(name) and not name.startswith("no_mem_embed"):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        theirs[name] = value
    theirs["prompt_encoder.shared_embedding.positional_embedding"] = theirs[SHARED_POSITIONS]
    points = [weights[f"sam_prompt_encoder.point_embeddings.{label}.weight"] for label in range(4)]
    theirs["prompt_encoder.point_embed.weight"] = torch.cat(points)
    return theirs


@pytest.fixture(scope="module")
def sam2(sam2_file: Path) -> Sam2:
    return Sam2.from_pretrained(sam2_file, config=SAM2_TINY, precision="float32")


def test_transformers_model_gives_the_same_masks(sam2: Sam2, pictures: list[np.ndarray]) -> None:
    from transformers import Sam2Config, Sam2Model

    model = Sam2Model(Sam2Config()).eval()
    missing, unexpected = model.load_state_dict(renamed(sam2.model.state_dict()), strict=False)
    assert not missing and not unexpected
    image = pictures[0]
    height, width = image.shape[:2]
    box, points = np.array([20.0, 30.0, 120.0, 110.0]), np.array([[60.0, 60.0], [150.0, 20.0]])
    scale = sam2.image_size / np.array([width, height])
    with torch.inference_mode():
        embeddings = model.get_image_embeddings(sam2._pixels(image)[None])
        by_box = model(
            image_embeddings=embeddings,
            input_boxes=torch.tensor((box.reshape(2, 2) * scale).reshape(1, 1, 4), dtype=torch.float32),
        )
        by_points = model(
            image_embeddings=embeddings,
            input_points=torch.tensor((points * scale)[None, None], dtype=torch.float32),
            input_labels=torch.tensor([[[1, 0]]]),
        )
    (features,) = sam2.encode_images([image])
    ours = sam2.decode(
        [features, features],
        [MaskPrompt(box_xyxy=box), MaskPrompt(points=points, point_labels=np.array([1, 0]))],
    )
    for answer, theirs in zip(ours, (by_box, by_points), strict=True):
        np.testing.assert_allclose(answer.mask_logits.numpy(), theirs.pred_masks[0, 0].numpy(), atol=1e-4)
        np.testing.assert_allclose(answer.iou_scores.numpy(), theirs.iou_scores[0, 0].numpy(), atol=1e-4)
