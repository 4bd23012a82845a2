"""The classifier as a Ray Serve deployment: pictures that arrive together share one call of the model."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from ray import serve

from core.augment import normalise
from core.checkpoint import WEIGHTS_FILE, Checkpoint, load
from core.images import PictureError, resize
from core.models import model_kind
from core.runtime import resolve_device
from serve.schemas import Classification, ModelCard, ModelName, Prediction
from serve.settings import Settings


def model_card(folder: Path, checkpoint: Checkpoint, device: str) -> ModelCard:
    """What clients may know of the checkpoint that was loaded from `folder`."""
    with (folder / WEIGHTS_FILE).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    return ModelCard(
        name=f"{model_kind(checkpoint.model_config)}-{checkpoint.dataset}",
        revision=digest[:12],
        dataset=checkpoint.dataset,
        class_names=list(checkpoint.class_names),
        image_size=checkpoint.model_config.image_size,
        device=device,
    )


@serve.deployment()
class Classifier:
    """One replica: loads the checkpoint, runs it once, then answers.

    Raises:
        CheckpointError: the folder is not a usable checkpoint (any more).
        RuntimeError: the model does not give finite numbers.
    """

    def __init__(self, settings: Settings) -> None:
        checkpoint = load(settings.classifier)
        self._device = resolve_device(settings.device)
        self._model = checkpoint.model.to(self._device)
        self._mean = torch.tensor(checkpoint.mean, device=self._device)
        self._std = torch.tensor(checkpoint.std, device=self._device)
        self._card = model_card(settings.classifier, checkpoint, str(self._device))
        self._name = ModelName(name=self._card.name, revision=self._card.revision)
        batched: Any = self._classify_batch  # type checkers do not see what `serve.batch` adds
        batched.set_max_batch_size(settings.max_batch_size)
        batched.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)
        self._run_once()

    async def card(self) -> ModelCard:
        """What this replica has loaded. That it answers at all means that the model has run."""
        return self._card

    async def classify(self, image: UInt8[np.ndarray, "height width 3"], top_k: int) -> Classification | PictureError:
        """The `top_k` likeliest classes (all of them if there are fewer).

        An error of this picture is returned, not raised: raised, it would reach the caller wrapped with a traceback.
        """
        return await self._classify_batch((image, top_k))

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        await asyncio.to_thread(self._run_once)

    @serve.batch()
    async def _classify_batch(self, requests: list[tuple[np.ndarray, int]]) -> list[Classification | PictureError]:
        # In a thread, so that the next batch can gather, and a health check be answered, while the model runs.
        return await asyncio.to_thread(self._classify_all, requests)

    def _classify_all(self, requests: list[tuple[np.ndarray, int]]) -> list[Classification | PictureError]:
        # One picture that does not fit must not fail those that happen to share its batch.
        fitted = [self._fit(image) for image, _ in requests]
        usable = [image for image in fitted if not isinstance(image, PictureError)]
        scores = iter(self._scores(np.stack(usable)) if usable else ())
        return [
            image if isinstance(image, PictureError) else self._classification(next(scores), top_k)
            for image, (_, top_k) in zip(fitted, requests, strict=True)
        ]

    def _fit(self, image: np.ndarray) -> np.ndarray | PictureError:
        try:
            return resize(image, self._card.image_size)
        except PictureError as error:
            return error

    def _scores(self, images: UInt8[np.ndarray, "batch side side 3"]) -> Float32[np.ndarray, "batch classes"]:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(self._device)
            logits = self._model(normalise(pixels, self._mean, self._std))
            return logits.float().softmax(dim=1).cpu().numpy()

    def _classification(self, scores: Float32[np.ndarray, " classes"], top_k: int) -> Classification:
        best = np.argsort(-scores, kind="stable")[:top_k]
        predictions = [Prediction(label=self._card.class_names[i], score=float(scores[i])) for i in best]
        return Classification(predictions=predictions, model=self._name)

    def _run_once(self) -> None:
        side = self._card.image_size
        if not np.isfinite(self._scores(np.zeros((1, side, side, 3), np.uint8))).all():
            raise RuntimeError(f"the model {self._card.name} gives numbers that are not finite")
