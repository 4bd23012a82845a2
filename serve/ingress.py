"""The HTTP side: routes, limits, errors. Pictures and JSON, never a tensor: the model is behind `ClassifierPort`."""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, BinaryIO, Protocol

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, UploadFile
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from core import images
from core.images import PictureError, PictureTooLargeError
from serve import problems
from serve.body_limit import BodyLimit
from serve.problems import Problem
from serve.schemas import Classification, Limits, Live, ModelCard, Models, Ready
from serve.settings import Settings

# Bounds the memory of decoded pictures: at most this many are in memory at once, however many requests wait.
_DECODERS = 4
_READY_TIMEOUT_S = 5.0


class ClassifierPort(Protocol):
    """What the routes need of a classifier; every method may raise `Problem`."""

    async def card(self) -> ModelCard: ...

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        """Raises PictureError if this picture cannot be used."""
        ...


class ClassifyForm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: Annotated[UploadFile, File(description="The picture.")]
    top_k: Annotated[int, Field(5, ge=1, description="How many classes to name; all of them if there are fewer.")]


def create_app(settings: Settings, image_size: int, classifier: ClassifierPort) -> FastAPI:
    """The whole HTTP interface, without Serve.

    Args:
        image_size: the side, in pixels, of the square that the classifier works on.
    """
    app = FastAPI(title="Patchwork", description="Vision transformers over HTTP.")
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    app.include_router(_health_routes(classifier))
    app.include_router(_model_routes(settings, classifier))
    app.include_router(_classify_routes(settings, image_size, classifier))
    return app


def _health_routes(classifier: ClassifierPort) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    @router.get("/v2/health/live")
    async def live() -> Live:
        """The service is up; its models may still be loading."""
        return Live()

    @router.get("/readyz", responses=problems.documented(problems.UNAVAILABLE))
    @router.get("/v2/health/ready", responses=problems.documented(problems.UNAVAILABLE))
    async def ready() -> Ready:
        """The model is loaded and has run once."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await classifier.card()
        except TimeoutError as error:
            raise Problem(problems.UNAVAILABLE, f"The classifier did not answer in {_READY_TIMEOUT_S:g} s.") from error
        return Ready()

    return router


def _model_routes(settings: Settings, classifier: ClassifierPort) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", responses=problems.documented(problems.BUSY, problems.UNAVAILABLE))
    async def models() -> Models:
        """What is loaded, and what requests may be."""
        limits = Limits(
            max_upload_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels,
            request_timeout_s=settings.request_timeout_s,
            formats=list(images.FORMATS),
        )
        return Models(models=[await classifier.card()], limits=limits)

    return router


def _classify_routes(settings: Settings, image_size: int, classifier: ClassifierPort) -> APIRouter:
    router = APIRouter(tags=["classify"])
    decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def read(file: BinaryIO) -> np.ndarray:
        # Scaled down here, not by the model: a photograph of 12 megapixels is 36 MB between processes, this a few kB.
        return images.resize(images.decode(file.read(), max_pixels=settings.max_pixels), image_size)

    @router.post(
        "/v1/classify",
        dependencies=[Depends(_require_multipart)],
        responses=problems.documented(
            problems.UNREADABLE_PICTURE,
            problems.MALFORMED_BODY,
            problems.BODY_TOO_LARGE,
            problems.PICTURE_TOO_LARGE,
            problems.UNSUPPORTED_MEDIA_TYPE,
            problems.INVALID_FIELD,
            problems.BUSY,
            problems.UNAVAILABLE,
            problems.DEADLINE_PASSED,
        ),
    )
    async def classify(form: Annotated[ClassifyForm, Form(media_type="multipart/form-data")]) -> Classification:
        """The likeliest classes of a picture."""
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                image = await asyncio.get_running_loop().run_in_executor(decoders, read, form.image.file)
                return await classifier.classify(image, form.top_k)
        except PictureTooLargeError as error:
            raise Problem(problems.PICTURE_TOO_LARGE, str(error)) from error
        except PictureError as error:
            raise Problem(problems.UNREADABLE_PICTURE, str(error)) from error
        except TimeoutError as error:
            detail = f"There was no answer within {settings.request_timeout_s:g} s."
            raise Problem(problems.DEADLINE_PASSED, detail) from error

    return router


def _require_multipart(request: Request) -> None:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "multipart/form-data":
        raise Problem(
            problems.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be multipart/form-data with a file named 'image', not {sent or 'without a type'}.",
        )


class _RemoteClassifier:
    """The classifier's deployment as a `ClassifierPort`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def card(self) -> ModelCard:
        return await _answer(self._handle.card.remote())

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        outcome = await _answer(self._handle.classify.remote(image, top_k))
        if isinstance(outcome, PictureError):
            raise outcome
        return outcome


async def _answer(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # nobody waits for it any more: keep it out of the next batch
        raise
    # Serve would answer these two by itself, in plain text.
    except BackPressureError as error:
        raise Problem(problems.BUSY, "The classifier's queue is full; try again shortly.") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise Problem(problems.UNAVAILABLE, "The classifier is being restarted; try again shortly.") from error


@serve.deployment()
@serve.ingress()
class Ingress:
    """The deployment that requests reach first; Serve calls the method below once a replica."""

    def __init__(self, settings: Settings, image_size: int, classifier: DeploymentHandle) -> None:
        self._settings = settings
        self._image_size = image_size
        self._classifier = _RemoteClassifier(classifier)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # For the whole process: the context manager for warnings is not safe with the threads that decode.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return create_app(self._settings, self._image_size, self._classifier)
