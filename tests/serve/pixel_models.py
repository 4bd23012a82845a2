"""Models without weights behind the routes: each looks at every pixel, and answers at once."""

from dataclasses import replace

import numpy as np

from core.segment.results import CroppedMask, Instance, PromptResult
from serve.ports import SegmentAnswer, SegmentAsk, SegmenterCard
from serve.schemas import Classification, ModelCard, ModelName, Prediction

IMAGE_SIZE = 8
SEGMENTER = SegmenterCard(preset="demo", clipseg="c@1", sam2="s@2", device="cpu", low_res_size=64)


class PixelModels:
    """The classifier's label is the mean; every prompt finds what is brighter than it."""

    async def card(self) -> ModelCard:
        return ModelCard(
            name="mean", revision="0", dataset="pixels", class_names=["grey"], image_size=IMAGE_SIZE, device="cpu"
        )

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and image.dtype == np.uint8
        prediction = Prediction(label=f"{image.mean():.0f}", score=1.0)
        return Classification(predictions=[prediction], model=ModelName(name="mean", revision="0"))

    async def ready(self) -> None: ...

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer:
        assert ask.image.ndim == 3 and ask.image.dtype == np.uint8
        grey = ask.image.mean(axis=2)
        cropped = CroppedMask.from_full(grey >= grey.mean())
        instance = Instance(
            cropped=cropped, score=0.9, quality=0.9, presence=0.9, evidence=(), source="coarse", why="It is bright."
        )
        result = PromptResult(
            prompt="",
            found=True,
            presence=0.9,
            reason=None,
            threshold=0.5,
            heatmap=np.full((64, 64), 0.5, np.float32),
            instances=(instance,),
            picture_size=cropped.size,
        )
        return SegmentAnswer(results=[replace(result, prompt=prompt) for prompt in ask.prompts], cached=False)
