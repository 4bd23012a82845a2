"""Refuses a request body that is too large, from its declared length or, where none is declared, while it arrives."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import BODY_TOO_LARGE, Problem


class BodyLimit:
    """ASGI middleware. Starlette's own (`max_body_size`) always answers in plain text."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await self._problem().response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._problem()
            return message

        await self._app(scope, counted, send)

    def _problem(self) -> Problem:
        # The rest of the upload is still on its way: on a connection kept open it would be read as the next request.
        return Problem(
            BODY_TOO_LARGE,
            f"The request body may have at most {self._max_bytes:,} bytes.",
            headers={"Connection": "close"},
        )
