"""What every request passes before its body is read: request id, path, API key, deadline, media type, admission;
and what it leaves."""

import asyncio
import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import problems
from serve.admission import Admission
from serve.body_limit import headers_if_unread
from serve.metrics import RequestMetrics
from serve.problems import Problem
from serve.schemas import FieldError
from serve.settings import StartError

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
_LOG = logging.getLogger("ray.serve")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MIN_KEY_CHARACTERS = 16
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_CHARSETS = (b"utf-8", b"us-ascii")
# Serve's proxy reads the same header, and when the time has passed answers by itself, in plain text: be there before.
_AHEAD_SHARE, _AHEAD_S = 0.4, 0.5


@dataclass(slots=True)
class Ticket:
    """What a request carries through the service; its times are of `time.perf_counter`.

    arrived: when all of its body was here, or the picture behind its link.
    """

    request_id: str
    began: float
    deadline: float
    arrived: float

    @property
    def left_s(self) -> float:
        return self.deadline - time.perf_counter()

    @property
    def timeout_s(self) -> float:
        return self.deadline - self.began


async def ticket_of(request: Request) -> Ticket:
    """A dependency of the routes; not async, FastAPI would send it to a thread and back."""
    return request.scope[problems.TICKET]


def read_keys(listed: str | None) -> tuple[bytes, ...]:
    """Digests of the API keys in a comma-separated list; what goes through the cluster are these, not the keys.

    Raises:
        StartError: a key is one that nobody should use.
    """
    keys = [key.strip() for key in (listed or "").split(",")]
    if keys == [""]:
        return ()
    for number, key in enumerate(keys, 1):
        if len(key) < _MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
            raise StartError(
                f"PATCHWORK_API_KEYS: key {number} is not usable: each needs at least {_MIN_KEY_CHARACTERS} printable "
                "ASCII characters without blanks, and commas between them"
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


class Gate:
    """ASGI middleware, outermost.

    Args:
        keys: digests of the API keys; none are asked for if there are none. They guard `/v1/`, not health or the page.
        admissions: by path, for the routes that do work. max_bytes: of a body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[bytes],
        admissions: Mapping[str, Admission],
        timeout_s: float,
        max_bytes: int,
        metrics: RequestMetrics,
    ) -> None:
        self._app, self._keys, self._admissions = app, keys, admissions
        self._timeout_s, self._max_bytes, self._metrics = timeout_s, max_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        asked_id = headers.get("x-request-id", "")
        request_id = asked_id if _SANE_ID.fullmatch(asked_id) else secrets.token_hex(8)
        ticket = Ticket(request_id, began, deadline=began + self._timeout_s, arrived=began)
        scope[problems.TICKET] = ticket
        path = _path_of(scope)
        admission = self._admissions.get(path) if scope["method"] == "POST" else None
        status = 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            _check_path(path)
            if path.startswith("/v1/"):
                self._check_key(headers)
            ticket.deadline = began + self._timeout(headers)
            if admission is not None:
                _check_media_type(headers)
                admission.enter(ticket.left_s)
        except Problem as problem:
            problem.headers = {**(problem.headers or {}), **headers_if_unread(headers, self._max_bytes)}
            await problem.response(request_id)(scope, receive, noting_status)
            self._note(path, admission, status, request_id, began)
            return
        if admission is not None:
            self._metrics.in_hand(path, admission.in_hand)
        try:
            await self._app(scope, _in_time(receive, ticket), noting_status)
        except Exception:
            status = 500  # sent by Starlette's own middleware, outside this one
            raise
        finally:
            if admission is not None:
                admission.leave(worked_since=ticket.arrived if status == 200 else None)
            self._note(path, admission, status, request_id, began)

    def _check_key(self, headers: Headers) -> None:
        if not self._keys:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        presented = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(presented.encode()).digest()
        # All are compared, each in constant time: how long it takes says nothing of the keys.
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise Problem(
                problems.UNAUTHORIZED,
                "Send a valid key, as `Authorization: Bearer KEY` or as `X-API-Key: KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _timeout(self, headers: Headers) -> float:
        asked = headers.get(TIMEOUT_HEADER)
        if asked is None:
            return self._timeout_s
        try:
            seconds = float(asked)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            error = FieldError(field=TIMEOUT_HEADER, message="must be a number of seconds above 0")
            raise Problem(problems.INVALID_FIELD, f"{error.field}: {error.message}", errors=[error])
        return min(self._timeout_s, seconds - min(_AHEAD_S, _AHEAD_SHARE * seconds))

    def _note(self, path: str, admission: Admission | None, status: int, request_id: str, began: float) -> None:
        if admission is None:
            return
        seconds = time.perf_counter() - began
        outcome = _outcome(status)
        self._metrics.answered(path, outcome, seconds)
        self._metrics.in_hand(path, admission.in_hand)
        _LOG.info(
            "%s %d %s in %.1f ms",
            path,
            status,
            outcome,
            1000 * seconds,
            extra={"patchwork": {"request_id": request_id, "path": path, "status": status, "outcome": outcome}},
        )


def _check_path(path: str) -> None:
    """A route's regular expression also matches a path with a line's end behind it, which is no route's here."""
    if _CONTROL_CHARACTER.search(path):
        raise Problem(problems.NOT_FOUND, "There is nothing at an address with control characters.")


def _check_media_type(headers: Headers) -> None:
    """FastAPI reads any form, in the event loop, before a route is asked; one of `&` alone takes a second for 3 MB.

    Starlette decodes a form's fields, there too, by whichever of Python's codecs the client names. Some take a time
    that grows with the square of the length: punycode twenty seconds for 400 kB.
    """
    sent = headers.get("content-type", "")
    media, parameters = parse_options_header(sent)
    if media != b"multipart/form-data":
        shown = sent.partition(";")[0].strip().lower() or "without a type"
        raise Problem(
            problems.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be multipart/form-data with a file named 'image', not {shown}.",
        )
    if parameters.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise Problem(problems.UNSUPPORTED_MEDIA_TYPE, "The body's charset must be utf-8, or not be named.")


def _in_time(receive: Receive, ticket: Ticket) -> Receive:
    """The same, but that a body has to be there by the deadline: who stops sending would hold a place for ever."""
    is_whole = False

    async def received() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout(ticket.left_s):
                message = await receive()
        except TimeoutError as error:
            detail = f"The request's body was not there within {ticket.timeout_s:.3g} s."
            raise Problem(problems.DEADLINE_PASSED, detail, headers={"Connection": "close"}) from error
        is_whole = not message.get("more_body", False)
        ticket.arrived = time.perf_counter()
        return message

    return received


def _path_of(scope: Scope) -> str:
    """The path within the application, which may be mounted below another."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _outcome(status: int) -> str:
    """`gone`: the client left, or the answer failed on its way."""
    known = {0: "gone", 200: "answered", 503: "busy", 504: "late", 500: "failed"}
    return known.get(status, "refused")
