"""Text-prompted segmentation as the documentation of CLIPSeg and of SAM 2 shows it, to measure Patchwork against.

One prompt at a time: the processor and the whole model for the heatmap, a threshold of one half, the mask's box given
to `SAM2ImagePredictor`, its best mask. Nothing is kept from one prompt to the next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from core.segment.masks import box_xyxy
from core.segment.pipeline import Segmenter

THRESHOLD = 0.5
Damage = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Bool `[height, width]` each; `found` is whether anything is above the threshold."""

    found: bool
    coarse: np.ndarray
    mask: np.ndarray


class Prototype:
    """The documented use of both libraries, with the weights of a `Segmenter`."""

    def __init__(self, segmenter: Segmenter) -> None:
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        grounder: Any = segmenter.grounder
        self.clipseg, self.processor = grounder.model, grounder.processor
        self.predictor: Any = SAM2ImagePredictor(segmenter.sam2.model)
        side = segmenter.sam2.low_res_size  # the predictor's own sizes are those of 1024 pixels
        self.predictor._bb_feat_sizes = [(side, side), (side // 2, side // 2), (side // 4, side // 4)]

    @torch.inference_mode()
    def heatmap(self, image: np.ndarray, prompt: str) -> torch.Tensor:
        """Logits `[size, size]`."""
        inputs = self.processor(
            text=[prompt], images=[Image.fromarray(image)], padding="max_length", truncation=True, return_tensors="pt"
        )
        inputs.pop("token_type_ids", None)
        logits = self.clipseg(**inputs).logits
        return logits.reshape(logits.shape[-2:])

    @torch.inference_mode()
    def shares(self, image: np.ndarray, prompt: str, damage: Damage | None = None) -> np.ndarray:
        """Probabilities `[height, width]`."""
        logits = self.heatmap(image, prompt)
        if damage is not None:
            logits = damage(logits)
        size = (image.shape[0], image.shape[1])
        return torch.sigmoid(F.interpolate(logits[None, None], size=size, mode="bilinear")[0, 0]).numpy()

    @torch.inference_mode()
    def segment(self, image: np.ndarray, prompt: str, damage: Damage | None = None) -> Answer:
        """One prompt, one mask."""
        coarse = self.shares(image, prompt, damage) > THRESHOLD
        if not coarse.any():
            return Answer(False, coarse, coarse)
        self.predictor.set_image(image)
        masks, _, _ = self.predictor.predict(box=box_xyxy(coarse)[None], multimask_output=False)
        return Answer(True, coarse, masks[0] > 0)
