"""What a caller may ask of a segmentation, checked before any model runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAX_PROMPT_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentOptions:
    """Options of one call.

    threshold: share of the heatmap in (0, 1) above which a pixel belongs to the coarse mask; `auto` chooses one for
        every prompt.
    refine: ask SAM 2; otherwise the coarse masks are the answer.
    zoom: look closer at what is small in the picture.
    max_instances: most objects a prompt is answered with, the surest first.
    min_presence: probability in [0, 1] below which an object is taken to be absent; None for the calibration's.
    resolve_overlaps: where objects of several prompts meet, each pixel goes to the one that it fits best. Two prompts
        that name the same object both keep it.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    threshold: float | Literal["auto"] = "auto"
    refine: bool = True
    zoom: bool = True
    max_instances: int = 20
    min_presence: float | None = None
    resolve_overlaps: bool = True

    def __post_init__(self) -> None:
        if self.threshold != "auto" and not (isinstance(self.threshold, float) and 0 < self.threshold < 1):
            raise ValueError(f"threshold must be 'auto' or a number between 0 and 1, got {self.threshold!r}")
        if not 1 <= self.max_instances <= 200:
            raise ValueError(f"max_instances must be from 1 to 200, got {self.max_instances}")
        if self.min_presence is not None and not 0 <= self.min_presence <= 1:
            raise ValueError(f"min_presence must be from 0 to 1, got {self.min_presence}")


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts without surplus blanks.

    Raises:
        ValueError: there are none, or one is empty, too long, or not text.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, got the text {prompts[:40]!r}; put it in a list")
    if not prompts:
        raise ValueError("at least one prompt is needed")
    cleaned = []
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {number} must be text, got {type(prompt).__name__}")
        text = " ".join("".join(c if c.isprintable() else " " for c in prompt).split())
        if not text:
            raise ValueError(f"prompt {number} is empty")
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"prompt {number} has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS} are taken")
        cleaned.append(text)
    return cleaned
