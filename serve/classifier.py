"""The classifier, in the ingress's own process or as a deployment: pictures that come together share a model's call."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from ray import serve

from core.image_classifier import ImageClassifier
from core.images import PictureError
from core.runtime import bound_kernel_caches
from serve.batcher import Batcher, Call, Item
from serve.metrics import StageMetrics
from serve.proof import Proof
from serve.schemas import Classification, ModelCard, ModelName, Prediction
from serve.settings import Settings

_STAGE = "classifier"


class LocalClassifier:
    """A `ClassifierPort` in this process: loads the checkpoint, runs it once, then answers.

    Raises:
        CheckpointError: the folder is not a usable checkpoint (any more).
        RuntimeError: the model does not give finite numbers.
    """

    def __init__(self, settings: Settings) -> None:
        bound_kernel_caches()
        self._classifier = ImageClassifier.from_folder(settings.classifier, settings.device)
        self._name = ModelName(name=self._classifier.name, revision=self._classifier.revision)
        self._metrics = StageMetrics()
        self._proof = Proof(self._run_once)
        self._batcher = Batcher(
            {_STAGE: self._classify_all},
            max_batch_size=settings.max_batch_size,
            wait_s=settings.batch_wait_ms / 1000,
            watch=self._watch,
        )
        # Small models lose by sharing a call among cores; several replicas are the way to use them.
        torch.set_num_threads(1)
        self._run_once()

    @property
    def image_size(self) -> int:
        """Side of the square that the model works on, in pixels."""
        return self._classifier.image_size

    async def card(self) -> ModelCard:
        """What this replica has loaded. That it answers at all means that the model has run."""
        classifier = self._classifier
        return ModelCard(
            name=classifier.name,
            revision=classifier.revision,
            dataset=classifier.dataset,
            class_names=list(classifier.class_names),
            image_size=classifier.image_size,
            device=str(classifier.device),
        )

    async def classify(self, image: UInt8[np.ndarray, "height width 3"], top_k: int) -> Classification:
        """The `top_k` likeliest classes (all of them if there are fewer).

        Raises:
            PictureError: this picture cannot be used.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Classification] = loop.create_future()

        def done(answer: Classification | Exception, _: Call) -> None:
            settle = future.set_exception if isinstance(answer, Exception) else future.set_result
            loop.call_soon_threadsafe(lambda: future.done() or settle(answer))  # type: ignore[arg-type]

        now = time.perf_counter()
        wanted = Item(
            kind=_STAGE, payload=(image, top_k), order=now, done=done, is_wanted=lambda: not future.done(), since=now
        )
        self._batcher.put([wanted])
        return await future

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        await self._proof.check()

    def _watch(self, stage: str, calls: Sequence[Call]) -> None:
        self._metrics.called(stage, calls)
        self._proof.renew()

    def _classify_all(self, requests: Sequence[tuple[np.ndarray, int]]) -> list[Classification | PictureError]:
        # One picture that does not fit must not fail those that happen to share its batch.
        fitted = [self._fit(image) for image, _ in requests]
        usable = [image for image in fitted if not isinstance(image, PictureError)]
        scores = iter(self._classifier.scores(usable) if usable else ())
        return [
            image if isinstance(image, PictureError) else self._classification(next(scores), top_k)
            for image, (_, top_k) in zip(fitted, requests, strict=True)
        ]

    def _fit(self, image: np.ndarray) -> np.ndarray | PictureError:
        try:
            return self._classifier.fit(image)
        except PictureError as error:
            return error

    def _classification(self, scores: Float32[np.ndarray, " classes"], top_k: int) -> Classification:
        best = np.argsort(-scores, kind="stable")[:top_k]
        predictions = [Prediction(label=self._classifier.class_names[i], score=float(scores[i])) for i in best]
        return Classification(predictions=predictions, model=self._name)

    def _run_once(self) -> None:
        side = self.image_size
        if not np.isfinite(self._classifier.scores([np.zeros((side, side, 3), np.uint8)])).all():
            raise RuntimeError(f"the model {self._classifier.name} gives numbers that are not finite")


@serve.deployment()
class Classifier(LocalClassifier):
    """The same as a deployment, scaled by itself."""

    async def outcome(self, image: UInt8[np.ndarray, "height width 3"], top_k: int) -> Classification | PictureError:
        """As `classify`, but an error of this picture is returned: raised, it would arrive wrapped with a traceback."""
        try:
            return await self.classify(image, top_k)
        except PictureError as error:
            return error
