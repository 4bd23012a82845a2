"""The HTTP side as a deployment: limits, errors, health. Pictures and JSON, never a tensor: models are behind ports."""

import asyncio
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from core import images
from core.images import PictureError
from core.segment.options import MAX_PROMPT_CHARACTERS
from serve import problems
from serve.admission import Admission
from serve.body_limit import BodyLimit
from serve.gate import Gate, Ticket, ticket_of
from serve.head import HeadAsGet
from serve.metrics import RequestMetrics
from serve.page import page_routes
from serve.ports import (
    ClassifierPort,
    LateError,
    SegmentAnswer,
    SegmentAsk,
    SegmenterCard,
    SegmenterPort,
    StageDownError,
)
from serve.problems import Problem
from serve.routes import in_time, picture_routes
from serve.schemas import Classification, Limits, Live, ModelCard, Models, Ready, SegmenterModels, Vocabulary
from serve.settings import Settings

if TYPE_CHECKING:
    from serve.classifier import LocalClassifier

_READY_TIMEOUT_S = 5.0
_CLOSING_STEP_S = 0.05
_RESTARTING = "A model is being restarted; try again shortly."


def create_app(
    settings: Settings,
    image_size: int,
    classifier: ClassifierPort,
    segmenter: SegmenterPort,
    card: SegmenterCard,
    keys: Sequence[bytes] = (),
) -> FastAPI:
    """The whole HTTP interface, without Serve; `state.admissions` are those of its routes that do work, by path.

    Args:
        image_size: the side, in pixels, of the square that the classifier works on.
        keys: digests of the API keys; none are asked for if there are none.
    """
    # Its page of the description loads nothing from elsewhere.
    app = FastAPIOffline(
        title="Patchwork",
        version="1",
        description="Vision transformers over HTTP: text-prompted segmentation, and classification.",
    )
    app.state.admissions = {path: Admission(settings.max_in_hand) for path in ("/v1/classify", "/v1/segment")}
    problems.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    app.add_middleware(
        Gate,
        keys=keys,
        admissions=app.state.admissions,
        timeout_s=settings.request_timeout_s,
        max_bytes=settings.max_upload_bytes,
        metrics=RequestMetrics(),
    )
    # For the description only: the gate has checked the key before.
    described = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
    secured = described if keys else []
    app.include_router(_health_routes(classifier, segmenter))
    app.include_router(_model_routes(settings, classifier, card), dependencies=secured)
    app.include_router(picture_routes(settings, image_size, classifier, segmenter, card), dependencies=secured)
    app.include_router(page_routes(samples=bool(card.shapes)))
    return app


def _health_routes(classifier: ClassifierPort, segmenter: SegmenterPort) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    @router.get("/v2/health/live")
    async def live() -> Live:
        """The service is up; its models may still be loading."""
        return Live()

    @router.get("/readyz", responses=problems.documented(problems.UNAVAILABLE))
    @router.get("/v2/health/ready", responses=problems.documented(problems.UNAVAILABLE))
    async def ready() -> Ready:
        """The models are loaded and have run once."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await asyncio.gather(classifier.card(), segmenter.ready())
        except TimeoutError as error:
            raise Problem(problems.UNAVAILABLE, f"The models did not answer in {_READY_TIMEOUT_S:g} s.") from error
        return Ready()

    return router


def _model_routes(settings: Settings, classifier: ClassifierPort, card: SegmenterCard) -> APIRouter:
    router = APIRouter(tags=["models"])
    limits = Limits(
        max_upload_bytes=settings.max_upload_bytes,
        max_pixels=settings.max_pixels,
        max_prompts=settings.max_prompts,
        max_prompt_characters=MAX_PROMPT_CHARACTERS,
        max_prompt_tokens=None if card.prompt_tokens is None else card.prompt_tokens.limit,
        request_timeout_s=settings.request_timeout_s,
        formats=list(images.FORMATS),
        urls=settings.allow_urls,
    )
    words = Vocabulary(shapes=list(card.shapes), colours=list(card.colours), sizes=list(card.sizes))
    loaded = SegmenterModels(
        preset=card.preset,
        clipseg=card.clipseg,
        sam2=card.sam2,
        device=card.device,
        vocabulary=words if card.shapes else None,
    )

    failures = (problems.UNAUTHORIZED, problems.BUSY, problems.UNAVAILABLE, problems.DEADLINE_PASSED)

    @router.get("/v1/models", responses=problems.documented(*failures))
    async def models(ticket: Annotated[Ticket, Depends(ticket_of)]) -> Models:
        """What is loaded, and what requests may be."""
        async with in_time(ticket):
            return Models(models=[await classifier.card()], segmenter=loaded, limits=limits)

    return router


class _RemoteClassifier:
    """The classifier's deployment as a `ClassifierPort`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def card(self) -> ModelCard:
        return await _answer(self._handle.card.remote())

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        outcome = await _answer(self._handle.outcome.remote(image, top_k))
        if isinstance(outcome, PictureError):
            raise outcome
        return outcome


class _RemoteSegmenter:
    """The segmenter's deployment as a `SegmenterPort`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def ready(self) -> None:
        await _answer(self._handle.ready.remote())

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer:
        outcome = await _answer(self._handle.segment.remote(ask))
        if isinstance(outcome, LateError):
            raise outcome
        if isinstance(outcome, StageDownError):
            raise Problem(problems.UNAVAILABLE, _RESTARTING)
        return outcome


async def _answer(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # nobody waits for it any more: keep it out of the next batch
        raise
    # Serve would answer these two by itself, in plain text.
    except BackPressureError as error:
        raise Problem(problems.BUSY, "The models' queue is full; try again shortly.") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise Problem(problems.UNAVAILABLE, _RESTARTING) from error


def _local_classifier(settings: Settings) -> "LocalClassifier":
    # Not above: it imports PyTorch, of no use to an ingress whose classifier is elsewhere.
    from serve.classifier import LocalClassifier

    return LocalClassifier(settings)


@serve.deployment()
@serve.ingress()
class Ingress:
    """The deployment that requests reach first; Serve calls the method below once a replica.

    Args:
        classifier: None to have it in this process.
    """

    def __init__(
        self,
        settings: Settings,
        image_size: int,
        classifier: DeploymentHandle | None,
        segmenter: DeploymentHandle,
        card: SegmenterCard,
        keys: Sequence[bytes],
    ) -> None:
        self._settings, self._image_size = settings, image_size
        self._classifier = _local_classifier(settings) if classifier is None else _RemoteClassifier(classifier)
        self._segmenter = _RemoteSegmenter(segmenter)
        self._card, self._keys = card, keys

    def __serve_build_asgi_app__(self) -> FastAPI:
        # For the whole process: the context manager for warnings is not safe with the threads that decode. Pillow has a
        # warning for each damaged EXIF entry, by the thousand in one file, and Python remembers every one it has shown.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        self._app = create_app(
            self._settings, self._image_size, self._classifier, self._segmenter, self._card, self._keys
        )
        return self._app

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if not isinstance(self._classifier, _RemoteClassifier):
            await self._classifier.check_health()

    async def close(self) -> None:
        """Refuse all further work; returns once what is in hand is answered."""
        admissions = self._app.state.admissions.values()
        for admission in admissions:
            admission.is_closed = True
        while any(admission.in_hand for admission in admissions):
            await asyncio.sleep(_CLOSING_STEP_S)
