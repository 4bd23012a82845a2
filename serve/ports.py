"""What the HTTP side and the model side say to each other: plain data, without tensors, and without Serve."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from core.segment.options import SegmentOptions
from core.segment.prompt_tokens import PromptTokens
from core.segment.results import PromptResult
from serve.schemas import Classification, ModelCard


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterCard:
    """The segmentation models as they are loaded.

    low_res_size: side of SAM 2's mask logits. prompt_tokens: what finds prompts that are too long for CLIPSeg; None
    if none are. shapes, colours, sizes: the words that the models know, where they know few.
    """

    preset: str
    clipseg: str
    sam2: str
    device: str
    low_res_size: int
    prompt_tokens: PromptTokens | None = None
    shapes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentAsk:
    """One request for masks.

    key: names the picture's content. heatmaps: whether they are wanted back. timeout_s: what is left of the time.
    """

    image: np.ndarray
    key: str
    prompts: tuple[str, ...]
    options: SegmentOptions
    heatmaps: bool
    timeout_s: float


@dataclass(kw_only=True, slots=True)
class StageTimes:
    """Milliseconds that a request waited for a model, and spent in calls of each; calls are shared with others."""

    queue: float = 0.0
    clipseg: float = 0.0
    sam2: float = 0.0


@dataclass(kw_only=True, slots=True, eq=False)
class SegmentAnswer:
    """The answer to a `SegmentAsk`.

    cached: whether the picture did not have to be encoded. degraded: why the masks are coarser than was asked for.
    """

    results: list[PromptResult]
    cached: bool
    degraded: str | None = None
    times: StageTimes = field(default_factory=StageTimes)


class LateError(Exception):
    """The time to answer in has passed."""


class StageDownError(Exception):
    """A model's replica went away while it worked on the request."""


class ClassifierPort(Protocol):
    """What the routes need of a classifier; every method may raise `Problem`."""

    async def card(self) -> ModelCard: ...

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        """Raises PictureError if this picture cannot be used."""
        ...


class SegmenterPort(Protocol):
    """What the routes need of a segmenter; every method may raise `Problem`."""

    async def ready(self) -> None:
        """Returns once the models are loaded and have run."""
        ...

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer:
        """Raises LateError if the time passed before there was anything to answer with."""
        ...
