"""The classifier as a Ray Serve deployment: pictures that arrive together share one call of the model."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from ray import serve

from core.augment import normalise
from core.checkpoint import WEIGHTS_FILE, Checkpoint, load
from core.images import PictureError, resize
from core.models import model_kind
from core.runtime import resolve_device
from serve.batcher import Batcher, Call, Item
from serve.metrics import StageMetrics
from serve.schemas import Classification, ModelCard, ModelName, Prediction
from serve.settings import Settings

_STAGE = "classifier"
# A replica that has answered within this time need not prove itself by a call for nothing.
_PROVED_FOR_S = 10.0


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
        self._metrics = StageMetrics()
        self._proved_at = 0.0
        self._batcher = Batcher(
            {_STAGE: self._classify_all},
            max_batch_size=settings.max_batch_size,
            wait_s=settings.batch_wait_ms / 1000,
            watch=self._watch,
        )
        # Small models lose by sharing a call among cores; several replicas are the way to use them.
        torch.set_num_threads(1)
        self._run_once()

    async def card(self) -> ModelCard:
        """What this replica has loaded. That it answers at all means that the model has run."""
        return self._card

    async def classify(self, image: UInt8[np.ndarray, "height width 3"], top_k: int) -> Classification | PictureError:
        """The `top_k` likeliest classes (all of them if there are fewer).

        An error of this picture is returned, not raised: raised, it would reach the caller wrapped with a traceback.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Classification | PictureError] = loop.create_future()

        def done(answer: Classification | PictureError | Exception, _: Call) -> None:
            failed = isinstance(answer, Exception) and not isinstance(answer, PictureError)
            settle = future.set_exception if failed else future.set_result
            loop.call_soon_threadsafe(lambda: future.done() or settle(answer))  # type: ignore[arg-type]

        now = time.perf_counter()
        wanted = Item(
            kind=_STAGE, payload=(image, top_k), order=now, done=done, is_wanted=lambda: not future.done(), since=now
        )
        self._batcher.put([wanted])
        return await future

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if time.monotonic() - self._proved_at > _PROVED_FOR_S:
            await asyncio.to_thread(self._run_once)

    def _watch(self, stage: str, calls: Sequence[Call]) -> None:
        self._metrics.called(stage, calls)
        self._proved_at = time.monotonic()

    def _classify_all(self, requests: Sequence[tuple[np.ndarray, int]]) -> list[Classification | PictureError]:
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
