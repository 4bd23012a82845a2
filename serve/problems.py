"""Errors as `application/problem+json` (RFC 9457): every answer that is not a success, the framework's own included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.schemas import FieldError, ProblemDetails

MEDIA_TYPE = "application/problem+json"
TICKET = "patchwork.ticket"  # where a request's scope holds its `Ticket`
_TYPE_PREFIX = "urn:patchwork:problem:"
_RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """One `type` that clients may rely on; `name` must never change."""

    status: int
    name: str
    title: str


UNREADABLE_PICTURE = Kind(400, "unreadable-picture", "The picture cannot be read")
MALFORMED_BODY = Kind(400, "malformed-body", "The request body is malformed")
UNAUTHORIZED = Kind(401, "unauthorized", "An API key is needed")
FORBIDDEN_URL = Kind(403, "forbidden-url", "This URL is not fetched")
NOT_FOUND = Kind(404, "not-found", "There is nothing at this address")
METHOD_NOT_ALLOWED = Kind(405, "method-not-allowed", "This address does not take that method")
BODY_TOO_LARGE = Kind(413, "body-too-large", "The request body is too large")
PICTURE_TOO_LARGE = Kind(413, "picture-too-large", "The picture has too many pixels")
URL_TOO_LARGE = Kind(413, "url-too-large", "The file behind the URL is too large")
UNSUPPORTED_MEDIA_TYPE = Kind(415, "unsupported-media-type", "The request body has the wrong type")
INVALID_FIELD = Kind(422, "invalid-field", "A field of the request is missing or wrong")
INTERNAL_ERROR = Kind(500, "internal-error", "The service failed")
URL_FAILED = Kind(502, "url-failed", "The URL's server did not give the picture")
BUSY = Kind(503, "busy", "Too many requests are waiting")
UNAVAILABLE = Kind(503, "unavailable", "The model is not available at the moment")
DEADLINE_PASSED = Kind(504, "deadline-passed", "The answer took too long")
URL_TIMED_OUT = Kind(504, "url-timed-out", "The URL's server took too long")

_OF_FRAMEWORK = {kind.status: kind for kind in (MALFORMED_BODY, NOT_FOUND, METHOD_NOT_ALLOWED)}


class Problem(HTTPException):
    """Ends the request with this kind of error. An `HTTPException`, as FastAPI lets only that out of body parsing."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers = {"Retry-After": str(_RETRY_AFTER_S), **(headers or {})}
        super().__init__(kind.status, detail, headers)
        self.kind = kind
        self.errors = list(errors)

    def response(self, request_id: str | None = None) -> JSONResponse:
        body = ProblemDetails(
            type=_TYPE_PREFIX + self.kind.name,
            title=self.kind.title,
            status=self.kind.status,
            detail=self.detail,
            errors=self.errors,
            request_id=request_id,
        )
        return JSONResponse(body.model_dump(), self.kind.status, headers=self.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Give every error of the app, whoever raises it, this form. What is unexpected is logged by Serve, not shown."""

    @app.exception_handler(HTTPException)
    async def of_framework(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, Problem):
            return error.response(_request_id(request))
        status = HTTPStatus(error.status_code)
        kind = _OF_FRAMEWORK.get(status, Kind(status, status.phrase.lower().replace(" ", "-"), status.phrase))
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return Problem(kind, detail, headers=error.headers).response(_request_id(request))

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_field_error(one) for one in error.errors()]
        detail = "; ".join(f"{one.field}: {one.message}" for one in errors)
        return Problem(INVALID_FIELD, detail, errors=errors).response(_request_id(request))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        detail = "The error has been logged; it is not the request's fault."
        return Problem(INTERNAL_ERROR, detail).response(_request_id(request))


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may end so, for its OpenAPI description."""
    return {
        status: {
            "description": "; ".join(kind.title for kind in kinds if kind.status == status),
            "content": {MEDIA_TYPE: {"schema": _schema()}},
        }
        for status in sorted({kind.status for kind in kinds})
    }


def _schema() -> dict[str, Any]:
    # Whole: a reference would be looked up in the description's own components.
    schema = ProblemDetails.model_json_schema()
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["FieldError"]
    return schema


def _request_id(request: Request) -> str | None:
    ticket = request.scope.get(TICKET)
    return None if ticket is None else ticket.request_id


def _field_error(error: Mapping[str, Any]) -> FieldError:
    # The location starts with where the field was looked for ("body"). The value is left out: it is not ours to echo.
    return FieldError(field=".".join(map(str, error["loc"][1:])) or "body", message=error["msg"])
