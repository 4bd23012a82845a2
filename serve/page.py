"""The web page at `/`: its files, and generated pictures to try it on. No build step, and nothing from elsewhere."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from PIL import Image
from pydantic import BaseModel, Field

from core.segment.scenes import generate_scene, render
from serve import problems
from serve.problems import Problem

_FOLDER = Path(__file__).parent / "web"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Pictures may come from anywhere, as links are to be pasted; everything else from here. With Trusted Types, a browser
# refuses to make HTML out of text at all.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data: http: https:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept, but asked about each time: the modules import each other by name, so none may be older than the others.
    "Cache-Control": "no-cache",
}
_SHORT_SIDE = 480
# From the seeds that the demo weights were never trained on. With each, prompts that suit it: some that name several
# objects, some that name none.
_SCENES: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "rings": (10_000_082, ("ring", "black star", "yellow square", "purple heart")),
    "yellows": (10_000_126, ("yellow object", "blue crescent", "white heart", "triangle")),
    "circles": (10_000_052, ("circle", "yellow star", "ring", "green triangle")),
    "blues": (10_000_099, ("blue object", "yellow crescent", "red cross", "dog")),
    "greens": (10_000_042, ("green object", "red crescent", "white square", "star")),
}


class Sample(BaseModel):
    name: str
    url: str = Field(description="Relative to the page.")
    prompts: list[str] = Field(description="Prompts worth trying on it.")


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str

    def response(self, request: Request) -> Response:
        """The file, or 304 if the browser has this very one."""
        tag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'
        headers = {**_HEADERS, "ETag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_routes(samples: bool) -> APIRouter:
    """The page, which talks to the other routes of the service.

    Args:
        samples: whether generated scenes are offered: only weights that were trained on such should be tried on them.
    """
    router = APIRouter(include_in_schema=False)
    files = {
        path.name: _File(path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(_FOLDER.iterdir())
        if path.suffix in _MEDIA_TYPES
    }
    scenes = _SCENES if samples else {}

    @router.get("/")
    async def page(request: Request) -> Response:
        return files["index.html"].response(request)

    # A look-up among the names that there are: what a request says never becomes a path.
    @router.get("/web/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise _missing(request)
        return files[name].response(request)

    @router.get("/samples")
    async def list_samples() -> list[Sample]:
        return [
            Sample(name=name, url=f"samples/{name}.png", prompts=list(prompts)) for name, (_, prompts) in scenes.items()
        ]

    @router.get("/samples/{name}.png")
    def sample(name: str, request: Request) -> Response:  # in a thread: drawing takes a while, once
        if name not in scenes:
            raise _missing(request)
        return _draw(scenes[name][0]).response(request)

    return router


@cache
def _draw(seed: int) -> _File:
    image, _ = render(generate_scene(seed, aspect=4 / 3), _SHORT_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return _File(buffer.getvalue(), "image/png")


def _missing(request: Request) -> Problem:
    return Problem(problems.NOT_FOUND, f"There is nothing at {request.url.path}.")
