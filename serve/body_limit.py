"""Refuses a request body that is too large, from its declared length or, where none is declared, while it arrives."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import BODY_TOO_LARGE, Problem

# What has at most so many times the largest size is received to its end, and thrown away as it comes.
_BEARABLE = 8


def headers_if_unread(headers: Mapping[str, str], max_bytes: int) -> dict[str, str]:
    """For an answer to a request whose body is not read: whether the connection ends with it.

    A connection that is closed while the client still sends is reset, and the answer in it may be lost before the
    client has read it (RFC 9112, section 9.6). So it is only for bodies without an end in sight.
    """
    bearable = "transfer-encoding" not in headers and _declared_bytes(headers) <= _BEARABLE * max_bytes
    return {} if bearable else {"Connection": "close"}


def _declared_bytes(headers: Mapping[str, str]) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


class BodyLimit:
    """ASGI middleware. Starlette's own (`max_body_size`) always answers in plain text."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _declared_bytes(headers) > self._max_bytes:
            await self._problem(headers).response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._problem(headers)
            return message

        await self._app(scope, counted, send)

    def _problem(self, headers: Headers) -> Problem:
        return Problem(
            BODY_TOO_LARGE,
            f"The request body may have at most {self._max_bytes:,} bytes.",
            headers=headers_if_unread(headers, self._max_bytes),
        )
