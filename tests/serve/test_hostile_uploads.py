"""Hundreds of hostile uploads through the routes: answered or refused with a sentence, and never our fault."""

import asyncio
import itertools

import httpx
import pytest
from hostile import Upload, classify_uploads, segment_uploads
from pixel_models import IMAGE_SIZE, SEGMENTER, PixelModels

from serve.ingress import create_app
from serve.settings import Settings

pytestmark = [
    # Damaged EXIF blocks and the like; in the service they are only logged.
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    # Starlette forgets a file whose part has no end; its last reference goes, and so does it.
    pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"),
]


def judge(upload: Upload, response: httpx.Response) -> None:
    """Whoever sends nonsense is told so; whoever sends a good picture gets an answer."""
    said = f"{upload.kind}: {response.status_code} {response.text[:500]}"
    assert response.status_code in ((200,) if upload.readable else (200, 400, 403, 413, 415, 422)), said
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json", said
        problem = response.json()
        assert problem["status"] == response.status_code, said
        assert problem["detail"] and len(response.content) < 10_000, said
    assert "Traceback" not in response.text and 'File "' not in response.text, said


async def send(client: httpx.AsyncClient, path: str, upload: Upload, **headers: str) -> httpx.Response:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    encoded.append((b"content-type", upload.content_type.encode("latin-1")))
    return await client.post(path, content=upload.body, headers=encoded)


def statuses(path: str, uploads: list[Upload], **headers: str) -> set[int]:
    """All the answers' statuses, each answer having been judged."""
    settings = Settings(max_upload_mb=0.5, max_pixels=200_000)
    models = PixelModels()
    app = create_app(settings, IMAGE_SIZE, models, models, SEGMENTER)

    async def run() -> set[int]:
        seen = set()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for upload in uploads:
                response = await send(client, path, upload, **headers)
                judge(upload, response)
                seen.add(response.status_code)
        return seen

    return asyncio.run(run())


def test_classify() -> None:
    uploads = list(itertools.islice(classify_uploads(2), 300))
    # Each way out is taken, or the uploads are not as different as they are meant to be.
    assert statuses("/v1/classify", uploads) == {200, 400, 403, 413, 415, 422}


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png"])
def test_segment(mask_format: str) -> None:
    uploads = list(itertools.islice(segment_uploads(1, mask_format), 150))
    assert statuses("/v1/segment", uploads) >= {200, 400, 413, 422}


def test_segment_drawn() -> None:
    readable = (upload for upload in segment_uploads(2) if upload.readable)
    assert statuses("/v1/segment", list(itertools.islice(readable, 20)), accept="image/png") == {200}
