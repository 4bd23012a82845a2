"""SAM 2's own modules (Ravi et al., 2024; package `sam2`) run on still pictures: the same arithmetic, less memory.

A processor spends most of a pass on memory, not on arithmetic. Left out is what videos alone need (a position code for
every level of the pyramid), made once is what all pictures share (the positions), and the values of one place lie
together, channels last, as the matrix products and the norms of both passes want them. Of the two finest levels the
decoder reads a linear map of few channels, which is applied at once: the many channels between are never made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

# SAM 2's pyramid: levels that take from the one above, counted from the finest; how; and how many are left out.
_PYRAMID = ([2, 3], "nearest", "sum", 1)


@dataclass(frozen=True, slots=True)
class Sam2Features:
    """One encoded picture, channels last. `high_res`: finest first. `size`: its height and width in pixels."""

    image_embed: Float[Tensor, "rows columns dim"]
    high_res: tuple[Float[Tensor, "_ _ _"], ...]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.image_embed.nbytes + sum(level.nbytes for level in self.high_res)


class StillEncoder:
    """Pixels to what the decoder reads of a picture. Holds copies of weights: made anew when the model's change.

    Raises:
        ValueError: the pyramid is not that of SAM 2, whose two coarse levels alone are summed.
    """

    def __init__(self, model: Any) -> None:
        encoder, decoder = model.image_encoder, model.sam_mask_decoder
        trunk, neck = encoder.trunk, encoder.neck
        pyramid = (list(neck.fpn_top_down_levels), neck.fpn_interp_model, neck.fuse_type, encoder.scalp)
        if pyramid != _PYRAMID or not decoder.use_high_res_features:
            raise ValueError(f"the image encoder's pyramid is not that of SAM 2: {pyramid}")
        # The neck lists its maps from the coarsest level on.
        *fine, self._level, self._above = [each.conv for each in reversed(neck.convs)]
        side = model.image_size // trunk.patch_embed.proj.stride[0]
        with torch.no_grad():
            self._fine = [_joined(*maps) for maps in zip(fine, (decoder.conv_s0, decoder.conv_s1), strict=True)]
            self._positions = trunk._get_pos_embed((side, side)).contiguous()
        self._trunk = trunk
        self._added = model.no_mem_embed if model.directly_add_no_mem_embed else None

    def __call__(
        self, pixels: Float[Tensor, "batch 3 side side"]
    ) -> tuple[Float[Tensor, "batch rows columns dim"], list[Float[Tensor, "batch _ _ _"]]]:
        """The embedding, and the finer levels, finest first; channels last."""
        *fine, level, above = self._stages(pixels)
        embed = _per_place(self._level, level)
        embed = embed + _per_place(self._above, above).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        if self._added is not None:
            embed = embed + self._added
        return embed, [F.linear(stage, *joined) for stage, joined in zip(fine, self._fine, strict=True)]

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """What the trunk gives for each level, finest first, channels last."""
        trunk = self._trunk
        hidden = trunk.patch_embed(pixels.contiguous(memory_format=torch.channels_last)) + self._positions
        stages = []
        for number, block in enumerate(trunk.blocks):
            hidden = block(hidden)
            if number in trunk.stage_ends:
                stages.append(hidden)
        return stages


class StillDecoder:
    """Prompts on encoded pictures to masks."""

    def __init__(self, model: Any) -> None:
        self._prompts, self._decoder = model.sam_prompt_encoder, model.sam_mask_decoder
        decoder = self._decoder
        first = [decoder.obj_score_token] if decoder.pred_obj_scores else []
        # The first token that a mask is read from comes after these.
        self._num_other_tokens = len(first) + 1
        with torch.no_grad():
            self._tokens = torch.cat([part.weight for part in (*first, decoder.iou_token, decoder.mask_tokens)])
            positions = self._prompts.get_dense_pe()
            self._positions = positions.to(memory_format=torch.channels_last)

    def __call__(
        self,
        features: Sequence[Sam2Features],
        points: Float[Tensor, "batch n 2"],
        labels: Int64[Tensor, "batch n"],
        masks: Float[Tensor, "batch 1 low low"] | None,
        *,
        multimask: bool,
    ) -> tuple[Float[Tensor, "batch masks low low"], Float[Tensor, "batch masks"]]:
        """Logits, and the IoU predicted for each, of one prompt a row."""
        decoder, batch = self._decoder, len(features)
        sparse, dense = self._prompts(points=(points, labels), boxes=None, masks=masks)
        tokens = torch.cat([self._tokens.expand(batch, -1, -1), sparse], dim=1)
        grid = torch.stack([feature.image_embed for feature in features])
        grid += dense.permute(0, 2, 3, 1)
        # The transformer flattens and transposes what it is given: of maps with their channels last, without a copy.
        positions = self._positions.expand(batch, -1, -1, -1)
        queries, keys = decoder.transformer(grid.permute(0, 3, 1, 2), positions, tokens)
        pixels = self._upscaled(keys.view_as(grid), features).flatten(1, 2)
        of_masks = queries[:, self._num_other_tokens :].unbind(1)
        kernels = [head(token) for head, token in zip(decoder.output_hypernetworks_mlps, of_masks, strict=False)]
        side = features[0].high_res[0].shape[0]
        logits = (torch.stack(kernels, dim=1) @ pixels.mT).unflatten(-1, (side, -1))
        scores = decoder.iou_prediction_head(queries[:, self._num_other_tokens - 1])
        if multimask:
            return logits[:, 1:], scores[:, 1:]
        if decoder.dynamic_multimask_via_stability:
            return decoder._dynamic_multimask_via_stability(logits, scores)
        return logits[:, :1], scores[:, :1]

    def _upscaled(
        self, grid: Float[Tensor, "batch rows columns dim"], features: Sequence[Sam2Features]
    ) -> Float[Tensor, "batch low low _"]:
        """From the transformer's places to the pixels of a mask, with the finer levels of the pictures added."""
        first, norm, activate, second, activate_again = self._decoder.output_upscaling
        finest, finer = zip(*(feature.high_res for feature in features), strict=True)
        between = _per_place(first, grid)
        _add_rows(between, finer)
        between = activate(F.layer_norm(between, between.shape[-1:], norm.weight, norm.bias, norm.eps))
        pixels = _per_place(second, between)
        _add_rows(pixels, finest)
        return activate_again(pixels)


def _joined(first: Any, then: Any) -> tuple[Float[Tensor, "out dim"], Float[Tensor, " out"]]:
    """Weight and bias of two 1x1 convolutions, one upon the other, as one linear map."""
    inner, outer = first.weight.flatten(1), then.weight.flatten(1)
    return outer @ inner, outer @ first.bias + then.bias


def _per_place(convolution: Any, grid: Float[Tensor, "batch rows columns dim"]) -> Float[Tensor, "batch _ _ _"]:
    """A convolution, on maps with their channels last."""
    return convolution(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _add_rows(batch: Float[Tensor, "batch *place"], rows: Sequence[Float[Tensor, "*place"]]) -> None:
    """Add to each, in place, what is of its picture: not stacked, as that would copy the largest maps there are."""
    for one, added in zip(batch, rows, strict=True):
        one += added
