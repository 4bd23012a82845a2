"""What stands between a picture with prompts and its heatmaps: another model can take CLIPSeg's place."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from core.segment.prompt_tokens import PromptTokens

Image = UInt8[np.ndarray, "_ _ 3"]


class Features(Protocol):
    """One encoded picture; what it holds is the grounder's own affair."""

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class Grounder(Protocol):
    """Finds what a prompt names. Keeps no state between calls: safe to share among threads."""

    revision: str
    image_size: int
    prompt_tokens: PromptTokens

    def encode_images(self, images: Sequence[Image]) -> Sequence[Any]:
        """`Features` of each picture, RGB in [0, 255], of any size."""
        ...

    def heatmaps(
        self, features: Sequence[Any], prompts: Sequence[Sequence[str]]
    ) -> list[Float[Tensor, "prompts size size"]]:
        """Logits for every prompt of every picture, `image_size` squared, whatever the picture's own proportions."""
        ...
