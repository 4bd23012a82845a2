"""What the work on a picture asks of the two models; whoever runs a flow answers it."""

from dataclasses import dataclass
from typing import Any

from core.segment.grounder import Image
from core.segment.sam2 import MaskPrompt
from core.segment.sam2_stills import Sam2Features


@dataclass(eq=False)
class EncodedImage:
    """A picture with what the models read of it, each filled when it is first needed."""

    image: Image
    grounded: Any = None
    encoded: Sam2Features | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.grounded, self.encoded)
        return self.image.nbytes + sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Heatmaps wanted: answered with logits `[prompts, size, size]`."""

    picture: EncodedImage
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """Masks wanted: answered with one `MaskCandidates` a prompt."""

    picture: EncodedImage
    prompts: tuple[MaskPrompt, ...]
