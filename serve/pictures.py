"""The picture of a request, uploaded or linked, from bytes to pixels within the limits."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, BinaryIO, TypeVar

import numpy as np
from fastapi import File, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from core import images
from core.images import PictureError, PictureTooLargeError
from serve import problems
from serve.admission import PictureMemory
from serve.fetch_url import MAX_URL_CHARACTERS, FetchError, fetch
from serve.gate import Ticket
from serve.problems import Kind, Problem
from serve.schemas import FieldError
from serve.settings import Settings

# Pictures that are decoded, and answers that are written, at the same time.
_THREADS = 4
# For pictures that are decoded or being decoded.
_MAX_BYTES = 2**30
_FETCH_TIMEOUT_S = 5.0
_FETCH_PROBLEMS = {
    "forbidden": problems.FORBIDDEN_URL,
    "too_large": problems.URL_TOO_LARGE,
    "failed": problems.URL_FAILED,
    "timeout": problems.URL_TIMED_OUT,
}
Result = TypeVar("Result")


class PictureForm(BaseModel):
    """The fields of every route that takes a picture."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[UploadFile | None, File(description="The picture's file. This, or `image_url`.")] = None
    image_url: Annotated[
        str | None,
        Field(description="Where the picture is, by http or https. This, or `image`.", max_length=MAX_URL_CHARACTERS),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A decoded picture; the hash is of its file, the times in milliseconds."""

    image: np.ndarray
    sha256: str
    fetch_ms: float | None
    decode_ms: float


class Pictures:
    """Reads the pictures of requests; what takes the CPU happens in a few threads, beside the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")
        self._memory = PictureMemory(_MAX_BYTES)

    @asynccontextmanager
    async def read(self, form: PictureForm, ticket: Ticket, side: int | None = None) -> AsyncIterator[Picture]:
        """The form's picture, whose memory is accounted for while the block runs.

        Args:
            side: of a square to scale it to, if one is given.

        Raises:
            Problem: there is not exactly one picture, its URL gives none, it cannot be read, or there is no room.
        """
        given = [name for name in ("image", "image_url") if getattr(form, name)]
        if len(given) != 1:
            message = "exactly one of image and image_url is needed"
            errors = [FieldError(field=name, message=message) for name in given or ("image", "image_url")]
            raise Problem(problems.INVALID_FIELD, f"image, image_url: {message}", errors=errors)
        if form.image is not None:
            file, fetch_ms = form.image.file, None
        else:
            started = time.perf_counter()
            file = BytesIO(await self._fetch(form.image_url or "", ticket))
            ticket.arrived = time.perf_counter()
            fetch_ms = 1000 * (ticket.arrived - started)
        decoding = self._threads.submit(self._decode, file, side, fetch_ms)
        try:
            yield await asyncio.wrap_future(decoding)
        finally:
            # At once; or when it ends, if the request is given up before: a thread cannot be stopped.
            decoding.add_done_callback(self._let_go)

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run what takes the CPU."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _decode(self, source: BinaryIO, side: int | None, fetch_ms: float | None) -> Picture:
        started = time.perf_counter()
        file = source.read()
        max_pixels = self._settings.max_pixels
        try:
            with self._memory.hold(images.cost(file, max_pixels=max_pixels).peak_bytes):
                image = images.decode(file, max_pixels=max_pixels)
                if side is not None:
                    image = images.resize(image, side)
                self._memory.add(image.nbytes)
        except PictureTooLargeError as error:
            raise Problem(problems.PICTURE_TOO_LARGE, str(error)) from error
        except PictureError as error:
            raise Problem(problems.UNREADABLE_PICTURE, str(error)) from error
        sha256 = hashlib.sha256(file).hexdigest()
        return Picture(image=image, sha256=sha256, fetch_ms=fetch_ms, decode_ms=1000 * (time.perf_counter() - started))

    def _let_go(self, decoding: Future[Picture]) -> None:
        if not decoding.cancelled() and decoding.exception() is None:
            self._memory.add(-decoding.result().image.nbytes)

    async def _fetch(self, url: str, ticket: Ticket) -> bytes:
        if not self._settings.allow_urls:
            raise Problem(problems.FORBIDDEN_URL, "This service takes pictures as files only.")
        try:
            timeout_s = min(_FETCH_TIMEOUT_S, ticket.left_s)
            return await fetch(url, max_bytes=self._settings.max_upload_bytes, timeout_s=timeout_s)
        except FetchError as error:
            if error.kind == "unsupported":
                errors = [FieldError(field="image_url", message=str(error))]
                raise Problem(problems.INVALID_FIELD, f"image_url: {error}", errors=errors) from error
            kind: Kind = _FETCH_PROBLEMS[error.kind]
            raise Problem(kind, str(error)) from error
