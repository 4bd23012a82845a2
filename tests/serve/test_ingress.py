"""The routes without Serve: a stand-in classifier, the real application, a real HTTP client."""

import asyncio
import io
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hostile import form
from live import assert_problem
from PIL import Image

from core.images import PictureError
from serve import problems
from serve.fetch_url import MAX_URL_CHARACTERS
from serve.ingress import create_app
from serve.ports import SegmentAnswer, SegmentAsk, SegmenterCard
from serve.problems import Problem
from serve.schemas import Classification, ModelCard, ModelName, Prediction
from serve.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CARD = ModelCard(name="vit-tiny", revision="0", dataset="tiny", class_names=["cat"], image_size=8, device="cpu")

SEGMENTER = SegmenterCard(
    preset="demo", clipseg="c@1", sam2="s@2", device="cpu", low_res_size=64, shapes=("ring",), colours=("red",)
)


class StandIn:
    """Answers with the picture's size and mean as the label, or fails as told."""

    def __init__(self, failure: Exception | None = None, delay_s: float = 0.0) -> None:
        self.failure = failure
        self.delay_s = delay_s
        self.cancelled = False

    async def card(self) -> ModelCard:
        await self._act()
        return CARD

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        await self._act()
        label = f"{image.shape} {image.mean():.0f}"
        predictions = [Prediction(label=label, score=1.0)] * top_k
        return Classification(predictions=predictions, model=ModelName(name=CARD.name, revision=CARD.revision))

    async def ready(self) -> None:
        await self._act()

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer:
        await self._act()
        return SegmentAnswer(results=[], cached=False)

    async def _act(self) -> None:
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.failure is not None:
            raise self.failure


def request(method: str, path: str, classifier: StandIn | None = None, **options: Any) -> httpx.Response:
    settings = Settings(classifier=Path("unused"), max_upload_mb=0.1, max_pixels=10_000, request_timeout_s=0.5)
    models = classifier or StandIn()
    app = create_app(settings, CARD.image_size, models, models, SEGMENTER)

    async def send() -> httpx.Response:
        # As over a network: what the application raises reaches the server's log, not the client.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def picture(width: int = 20, height: int = 10, grey: int = 99) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), grey).save(file, "PNG")
    return file.getvalue()


def classify(data: bytes, classifier: StandIn | None = None, **fields: Any) -> httpx.Response:
    return request("POST", "/v1/classify", classifier, files={"image": ("p.png", data)}, data=fields)


def test_the_classifier_gets_the_picture_at_its_own_size() -> None:
    response = classify(picture(), top_k=2)
    assert response.status_code == 200
    assert response.json() == {
        "predictions": [{"label": "(8, 8, 3) 99", "score": 1.0}] * 2,
        "model": {"name": "vit-tiny", "revision": "0"},
    }


def test_models_lists_what_is_loaded_and_the_limits() -> None:
    body = request("GET", "/v1/models").json()
    assert body["models"] == [CARD.model_dump()]
    assert body["segmenter"]["vocabulary"] == {"shapes": ["ring"], "colours": ["red"], "sizes": []}
    assert body["limits"]["max_pixels"] == 10_000
    assert body["limits"]["max_prompt_tokens"] is None
    assert "PNG" in body["limits"]["formats"]


@pytest.mark.parametrize("path", ["/healthz", "/v2/health/live"])
def test_alive_even_if_the_model_is_not(path: str) -> None:
    response = request("GET", path, StandIn(Problem(problems.UNAVAILABLE, "restarting")))
    assert (response.status_code, response.json()) == (200, {"live": True})


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready"])
def test_ready_as_soon_as_the_model_is(path: str) -> None:
    response = request("GET", path)
    assert (response.status_code, response.json()) == (200, {"ready": True})
    response = request("GET", path, StandIn(Problem(problems.UNAVAILABLE, "restarting")))
    assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "1"


def test_not_ready_if_the_model_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.ingress._READY_TIMEOUT_S", 0.05)
    assert_problem(request("GET", "/readyz", StandIn(delay_s=30)), 503, "unavailable")


def test_models_that_do_not_answer_are_not_waited_for() -> None:
    started = time.monotonic()
    headers = {"X-Request-Timeout-Seconds": "0.2"}
    assert_problem(request("GET", "/v1/models", StandIn(delay_s=30), headers=headers), 504, "deadline-passed")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "path", ["/", "/web/app.js", "/samples", "/healthz", "/readyz", "/v1/models", "/docs", "/openapi.json"]
)
def test_head_is_get_without_the_body(path: str) -> None:
    head, get = request("HEAD", path), request("GET", path)
    assert head.status_code == get.status_code == 200
    assert head.headers == get.headers
    assert get.content and not head.content


def test_head_fails_as_get_does() -> None:
    head, get = request("HEAD", "/v1/nothing"), request("GET", "/v1/nothing")
    assert head.status_code == get.status_code == 404 and not head.content
    response = request("HEAD", "/v1/classify")
    assert response.status_code == 405 and response.headers["allow"] == "POST" and not response.content


@pytest.mark.parametrize("data", [b"", b"not a picture", picture()[:40]])
def test_an_unreadable_picture(data: bytes) -> None:
    assert assert_problem(classify(data), 400, "unreadable-picture")["detail"]


def test_a_picture_that_the_classifier_cannot_use() -> None:
    body = assert_problem(classify(picture(), StandIn(PictureError("It is odd."))), 400, "unreadable-picture")
    assert body["detail"] == "It is odd."


def test_too_many_pixels() -> None:
    body = assert_problem(classify(picture(200, 51)), 413, "picture-too-large")
    assert "200 x 51" in body["detail"]


def test_too_many_bytes_by_declared_length() -> None:
    response = classify(bytes(200_000))
    assert_problem(response, 413, "body-too-large")
    assert "connection" not in response.headers  # closed on a client that still sends, it would lose the answer
    response = classify(bytes(2_000_000))
    assert_problem(response, 413, "body-too-large")
    assert response.headers["connection"] == "close"


def test_too_many_bytes_without_declared_length() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        while True:
            sent += 10_000
            yield bytes(10_000)

    response = request(
        "POST", "/v1/classify", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert_problem(response, 413, "body-too-large")
    assert sent < 150_000


@pytest.mark.parametrize(
    "options", [{"json": {}}, {"data": {"top_k": "1"}}, {"content": b"x", "headers": {"content-type": "image/png"}}, {}]
)
def test_a_body_that_is_not_multipart(options: dict[str, Any]) -> None:
    assert_problem(request("POST", "/v1/classify", **options), 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/json", ""])
def test_a_body_that_is_not_multipart_is_refused_before_it_is_read(content_type: str) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"&" * 10

    headers = {"content-type": content_type} if content_type else {}
    response = request("POST", "/v1/classify", content=body(), headers=headers)
    assert_problem(response, 415, "unsupported-media-type")
    assert not read


@pytest.mark.parametrize("path", ["/v1/classify%0A", "/v1/classify%0D", "/%00", "/v1/models%0A", "/healthz%0A"])
def test_no_path_with_control_characters_leads_anywhere(path: str) -> None:
    for method in ("GET", "POST"):
        assert_problem(request(method, path, files={"image": picture()}), 404, "not-found")


@pytest.mark.parametrize(
    ("charset", "status"),
    [("punycode", 415), ('"PunyCode"', 415), ("utf-8; charset=utf-16", 415), ("UTF-8", 200), ('"us-ascii"', 200)],
)
def test_a_charset_that_python_may_be_slow_to_decode_is_refused_before_the_body_is_read(
    charset: str, status: int
) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield form([("image", picture())])

    headers = {"content-type": f"multipart/form-data; boundary=b; Charset={charset}"}
    response = request("POST", "/v1/classify", content=body(), headers=headers)
    assert response.status_code == status, response.text
    if status == 415:
        assert_problem(response, 415, "unsupported-media-type")
        assert not read


@pytest.mark.parametrize(
    ("content_type", "content"),
    [("multipart/form-data", b""), ("multipart/form-data; boundary=b", b"no boundary in here")],
)
def test_malformed_multipart(content_type: str, content: bytes) -> None:
    response = request("POST", "/v1/classify", content=content, headers={"content-type": content_type})
    assert_problem(response, 400, "malformed-body")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"files": {"image": picture()}, "data": {"top_k": "0"}}, "top_k"),
        ({"files": {"image": picture()}, "data": {"top_k": "many"}}, "top_k"),
        ({"files": {"image": picture()}, "data": {"topk": "3"}}, "topk"),
        ({"files": {"picture": picture()}}, "picture"),
        ({"files": {"image": picture()}, "data": {"image_url": "http://example.org/p.png"}}, "image_url"),
        ({"files": {"image": (None, b"a field, not a file")}}, "image"),
    ],
)
def test_a_bad_field_is_named(options: dict[str, Any], field: str) -> None:
    body = assert_problem(request("POST", "/v1/classify", **options), 422, "invalid-field")
    assert field in [error["field"] for error in body["errors"]]
    assert field in body["detail"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ([("image", picture()), ("image", picture(5, 5))], "image"),
        ([("image", picture()), ("top_k", b"1"), ("top_k", b"1")], "top_k"),
        ([("image", picture()), ("prompts", b"a"), ("threshold", b"0.3"), ("threshold", b"0.9")], "threshold"),
    ],
)
def test_what_is_given_twice_is_refused(fields: list[tuple[str, bytes]], name: str) -> None:
    path = "/v1/segment" if ("prompts", b"a") in fields else "/v1/classify"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    body = assert_problem(request("POST", path, content=form(fields), headers=headers), 422, "invalid-field")
    assert body["errors"] == [{"field": name, "message": "is given more than once"}]
    assert body["detail"] == f"{name}: is given more than once"


def test_unknown_addresses_and_methods() -> None:
    assert_problem(request("GET", "/v1/nothing"), 404, "not-found")
    response = request("GET", "/v1/classify")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_a_full_queue() -> None:
    response = classify(picture(), StandIn(Problem(problems.BUSY, "full")))
    assert_problem(response, 503, "busy")
    assert response.headers["retry-after"] == "1"


def test_a_passed_deadline_gives_up_on_the_model() -> None:
    classifier = StandIn(delay_s=30)
    started = time.monotonic()
    body = assert_problem(classify(picture(), classifier), 504, "deadline-passed")
    assert time.monotonic() - started < 10
    assert "0.5 s" in body["detail"]
    assert classifier.cancelled


def test_a_failure_of_ours_is_not_shown() -> None:
    response = classify(picture(), StandIn(RuntimeError("secret: /root/weights")))
    assert_problem(response, 500, "internal-error")
    assert "secret" not in response.text


def test_importing_it_brings_no_tensors() -> None:
    code = "import serve.ingress, sys; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_description_offers_the_upload_and_the_errors() -> None:
    paths = request("GET", "/openapi.json").json()["paths"]
    route = paths["/v1/classify"]["post"]
    assert list(route["requestBody"]["content"]) == ["multipart/form-data"]
    assert set(route["responses"]) == {
        *("200", "400", "401", "403", "413", "415", "422", "500", "502", "503", "504"),
    }
    assert list(route["responses"]["422"]["content"]) == ["application/problem+json"]


def test_a_link_may_be_as_long_as_the_description_says() -> None:
    schemas = request("GET", "/openapi.json").json()["components"]["schemas"]
    (link, _) = schemas["ClassifyForm"]["properties"]["image_url"]["anyOf"]
    assert link["maxLength"] == MAX_URL_CHARACTERS


def test_the_page_of_the_description_loads_nothing_from_elsewhere() -> None:
    page = request("GET", "/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(url.endswith(".js") for url in loaded) and any(url.endswith(".css") for url in loaded)
    assert not re.search("https?://", page)
    for url in loaded:
        response = request("GET", url)
        assert response.status_code == 200 and response.content
