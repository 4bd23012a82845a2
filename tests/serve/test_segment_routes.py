"""The route for masks over the real models, without Serve: forms of the answer, fields, limits, keys, admission."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hostile import form
from live import assert_problem, png
from PIL import Image
from pycocotools import mask as coco

from core.segment.labelled import Labelled, labelled_scene
from core.segment.pipeline import Segmenter as InProcess
from serve.fetch_url import FetchError
from serve.gate import read_keys
from serve.ingress import create_app
from serve.models import segmenter_card
from serve.ports import LateError, SegmentAnswer, SegmentAsk, SegmenterCard
from serve.routes import prefers_png
from serve.schemas import Classification, ModelCard
from serve.settings import Settings, StartError

KEY = "a-key-of-the-tests"


class Port:
    """The real segmenter, called at once; a classifier is not asked."""

    def __init__(self, segmenter: InProcess, before: Callable[[], Awaitable[None]] | None = None) -> None:
        self.segmenter, self.before = segmenter, before
        self.degraded: str | None = None

    async def card(self) -> ModelCard:
        return ModelCard(name="none", revision="0", dataset="none", class_names=[], image_size=8, device="cpu")

    async def classify(self, image: np.ndarray, top_k: int) -> Classification:
        raise NotImplementedError

    async def ready(self) -> None: ...

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer:
        if self.before is not None:
            await self.before()
        (results,) = self.segmenter.segment([ask.image], [ask.prompts], ask.options)
        return SegmentAnswer(results=results, cached=False, degraded=self.degraded)


@pytest.fixture(scope="module")
def segmenter() -> InProcess:
    return InProcess.from_preset("demo", precision="float32")


@pytest.fixture(scope="module")
def card(segmenter: InProcess) -> SegmenterCard:
    settings = Settings(classifier=Path("unused"), device="cpu")
    return segmenter_card(settings, segmenter.grounder, segmenter.sam2)


@pytest.fixture(scope="module")
def scene() -> Labelled:
    return labelled_scene(34_000_000)


@pytest.fixture
def port(segmenter: InProcess) -> Port:
    return Port(segmenter)


class Client:
    def __init__(self, port: Port, card: SegmenterCard, keys: str | None = None, **settings: Any) -> None:
        fields = {"classifier": Path("unused"), "max_pixels": 100_000, "max_prompts": 8, **settings}
        self.app = create_app(Settings(**fields), 8, port, port, card, read_keys(keys))

    def requests(self, *requests: dict[str, Any]) -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return list(await asyncio.gather(*(client.request(**request) for request in requests)))

        return asyncio.run(send())

    def segment(
        self, image: bytes | None, prompts: Sequence[str], headers: Any = None, **fields: str
    ) -> httpx.Response:
        # All as parts: without a file, httpx would send a form of another type.
        parts: list[tuple[str, Any]] = [("prompts", (None, prompt)) for prompt in prompts]
        parts += [(name, (None, value)) for name, value in fields.items()]
        if image is not None:
            parts.append(("image", ("picture.png", image)))
        request = {"method": "POST", "url": "/v1/segment", "files": parts, "headers": headers}
        (response,) = self.requests(request)
        return response


@pytest.fixture
def client(port: Port, card: SegmenterCard) -> Client:
    return Client(port, card)


def found(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return response.json()


def drawn(mask: dict[str, Any]) -> np.ndarray:
    """A mask in any of the three forms as pixels, by the readers that clients have."""
    height, width = mask["size"]
    if mask["format"] == "png":
        return np.array(Image.open(io.BytesIO(base64.b64decode(mask["data"])))) > 127
    if mask["format"] == "polygon":
        encoded: Any = coco.merge(coco.frPyObjects(mask["polygons"], height, width))
    else:
        encoded = {"size": mask["size"], "counts": mask["counts"].encode()}
    return coco.decode(encoded).astype(bool)


@pytest.mark.parametrize("mask_format", ["rle", "png", "polygon"])
def test_masks_in_each_form_are_those_of_the_segmenter(
    client: Client, segmenter: InProcess, scene: Labelled, mask_format: str
) -> None:
    body = found(client.segment(png(scene.image), scene.prompts, format=mask_format))
    assert (body["image"]["width"], body["image"]["height"]) == (256, 256)
    ((*expected,),) = segmenter.segment([scene.image], [scene.prompts])
    assert any(result.instances for result in expected)
    for result, wanted in zip(body["results"], expected, strict=True):
        assert (result["prompt"], result["found"]) == (wanted.prompt, wanted.found)
        assert ("reason" in result) and (result["reason"] is None) == wanted.found
        for instance, theirs in zip(result["instances"], wanted.instances, strict=True):
            mask = drawn(instance["mask"])
            assert mask.shape == theirs.mask.shape
            differs = float((mask != theirs.mask).sum() / theirs.area)
            assert differs == 0 if mask_format != "polygon" else differs < 0.1
            assert instance["box_xyxy"] == list(theirs.box_xyxy)
            assert instance["area"] == theirs.area
            assert instance["why"] == theirs.why
            assert {"presence", "score", "source", "zoomed"} <= instance.keys()
            assert not {"quality", "candidates"} & instance.keys()


def test_an_explained_answer_has_heatmap_candidates_and_quality(client: Client, scene: Labelled) -> None:
    body = found(client.segment(png(scene.image), scene.prompts[:1], explain="true"))
    (result,) = body["results"]
    heatmap = Image.open(io.BytesIO(base64.b64decode(result["heatmap"]["data"])))
    assert list(heatmap.size) == result["heatmap"]["size"] == [128, 128]
    assert heatmap.mode == "L" and np.asarray(heatmap).max() > 200
    (instance, *_) = result["instances"]
    assert 0 <= instance["quality"] <= 1
    assert set(instance["candidates"][0]) == {
        *("kind", "index", "agreement", "predicted_iou", "stability", "leakage", "score"),
    }


def test_the_overlay_is_a_picture_of_the_same_size(client: Client, scene: Labelled) -> None:
    response = client.segment(png(scene.image), scene.prompts, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    overlay = np.array(Image.open(io.BytesIO(response.content)))
    assert overlay.shape == scene.image.shape and (overlay != scene.image).any()


@pytest.mark.parametrize(
    ("accept", "png_wanted"),
    [
        ("image/png", True),
        ("image/png, application/json;q=0.5", True),
        ("application/json, image/png;q=0.9", False),
        ("image/png;q=oops", False),
        ("*/*", False),
        ("text/html, image/*", True),
        ("image/png;q=0.1, */*", False),
        ("image/png;q=0.5, application/*", False),
        ("image/png, */*;q=0.8", True),
        ("image/png, */*", True),
        ("image/*, */*", True),
        ("image/png;q=0, */*", False),
        ("application/json;q=0, */*", True),
        ("", False),
    ],
)
def test_what_is_accepted(accept: str, png_wanted: bool) -> None:
    assert prefers_png(accept) == png_wanted


def test_options_reach_the_segmenter(client: Client, scene: Labelled) -> None:
    data = png(scene.image)
    body = found(client.segment(data, ["circle", "red object"], threshold="0.4", refine="false", max_instances="1"))
    for result in body["results"]:
        assert result["threshold"] == 0.4
        assert len(result["instances"]) <= 1
        assert {instance["source"] for instance in result["instances"]} <= {"coarse"}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompts": [], "refine": "true"}, "prompts"),
        ({"prompts": [" "]}, "prompts"),
        ({"prompts": ["star"] * 9}, "prompts"),
        ({"prompts": ["x" * 501]}, "prompts"),
        ({"prompts": ["star"], "threshold": "1.5"}, "threshold"),
        ({"prompts": ["star"], "threshold": "nan"}, "threshold"),
        ({"prompts": ["star"], "threshold": "high"}, "threshold"),
        ({"prompts": ["star"], "max_instances": "0"}, "max_instances"),
        ({"prompts": ["star"], "format": "jpeg"}, "format"),
        ({"prompts": ["star"], "refine": "perhaps"}, "refine"),
        ({"prompts": ["star"], "image_url": "http://example.org/a.png"}, "image_url"),
        ({"prompts": ["star"], "colour": "red"}, "colour"),
    ],
)
def test_a_bad_field_is_named(client: Client, scene: Labelled, fields: dict[str, Any], name: str) -> None:
    body = assert_problem(client.segment(png(scene.image), **fields), 422, "invalid-field")
    assert any(error["field"].startswith(name) for error in body["errors"]), body
    assert body["request_id"]


def test_a_prompt_that_is_not_read_to_its_end_is_told_so(client: Client, scene: Labelled) -> None:
    (models,) = client.requests({"method": "GET", "url": "/v1/models"})
    most = models.json()["limits"]["max_prompt_tokens"]
    prompts = ["small " * (most - 1) + "star", "small " * most + "star"]
    answer = client.segment(png(scene.image), prompts, refine="false")
    assert [one.get("tokens_read") for one in answer.json()["results"]] == [None, most]


@pytest.mark.parametrize(
    ("kind", "status", "name"),
    [
        ("forbidden", 403, "forbidden-url"),
        ("unsupported", 422, "invalid-field"),
        ("too_large", 413, "url-too-large"),
        ("failed", 502, "url-failed"),
        ("timeout", 504, "url-timed-out"),
    ],
)
def test_a_link_that_gives_no_picture(
    client: Client, monkeypatch: pytest.MonkeyPatch, kind: Any, status: int, name: str
) -> None:
    async def fetch(url: str, *, max_bytes: int, timeout_s: float) -> bytes:
        raise FetchError(kind, f"It is {kind}.")

    monkeypatch.setattr("serve.pictures.fetch", fetch)
    body = assert_problem(client.segment(None, ["star"], image_url="http://example.org/a.png"), status, name)
    assert f"It is {kind}." in body["detail"]


def test_links_are_refused_to_what_is_private_and_where_they_are_switched_off(port: Port, card: SegmenterCard) -> None:
    for client in (Client(port, card), Client(port, card, allow_urls=False)):
        response = client.segment(None, ["star"], image_url="http://127.0.0.1:8000/v1/models")
        assert_problem(response, 403, "forbidden-url")


def test_a_picture_behind_a_link(client: Client, scene: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch(url: str, *, max_bytes: int, timeout_s: float) -> bytes:
        assert (url, max_bytes) == ("http://example.org/a.png", 20 * 2**20) and timeout_s <= 5
        return png(scene.image)

    monkeypatch.setattr("serve.pictures.fetch", fetch)
    body = found(client.segment(None, scene.prompts[:1], image_url="http://example.org/a.png"))
    assert body["timings_ms"]["fetch"] >= 0


def test_keys_guard_the_work_and_nothing_else(port: Port, card: SegmenterCard, scene: Labelled) -> None:
    client = Client(port, card, keys=f"another-key-than-that,{KEY}")
    for headers in (None, {"x-api-key": KEY[:-1]}, {"authorization": f"Basic {KEY}"}, {"x-api-key": b"\xff"}):
        response = client.segment(png(scene.image), ["star"], headers=headers)
        assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        found(client.segment(png(scene.image), ["star"], headers=headers))
    statuses = [r.status_code for r in client.requests(*({"method": "GET", "url": u} for u in ("/healthz", "/readyz")))]
    assert statuses == [200, 200]
    assert client.requests({"method": "GET", "url": "/v1/models"})[0].status_code == 401
    described = client.requests({"method": "GET", "url": "/openapi.json"})[0].json()
    assert described["paths"]["/v1/segment"]["post"]["security"]


@pytest.mark.parametrize("listed", ["short", "a-key-of-the-tests,", "with a blank inside it", "schlüssel-der-tests"])
def test_keys_that_nobody_should_use(listed: str) -> None:
    with pytest.raises(StartError, match=r"PATCHWORK_API_KEYS: key [12] is not usable") as raised:
        read_keys(listed)
    assert listed not in raised.value.message


def test_beyond_the_queue_requests_are_refused_before_their_body_is_read(
    segmenter: InProcess, card: SegmenterCard, scene: Labelled
) -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        await asyncio.wait_for(waiting.wait(), 20)

    client = Client(Port(segmenter, wait), card, max_queued=2)

    async def send() -> tuple[list[httpx.Response], float, httpx.Response]:
        transport = httpx.ASGITransport(client.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

            def post() -> Any:
                return http.post("/v1/segment", files={"image": png(scene.image)}, data={"prompts": ["star"]})

            inside = [asyncio.create_task(post()) for _ in range(2)]
            await asyncio.sleep(0.2)
            started = time.perf_counter()
            refused = await asyncio.gather(*(post() for _ in range(10)))
            took = time.perf_counter() - started
            waiting.set()
            assert [response.status_code for response in await asyncio.gather(*inside)] == [200, 200]
            return list(refused), took, await post()

    refused, took, after = asyncio.run(send())
    for response in refused:
        assert_problem(response, 503, "busy")
        assert response.headers["retry-after"] == "1"
    assert took < 5
    found(after)


def test_a_deadline_of_the_request(segmenter: InProcess, card: SegmenterCard, scene: Labelled) -> None:
    async def stall() -> None:
        await asyncio.sleep(30)

    client = Client(Port(segmenter, stall), card)
    started = time.perf_counter()
    response = client.segment(png(scene.image), ["star"], headers={"X-Request-Timeout-Seconds": "0.5"})
    assert_problem(response, 504, "deadline-passed")
    assert time.perf_counter() - started < 15
    for wrong in ("0", "-3", "soon", "nan", "inf"):
        response = client.segment(png(scene.image), ["star"], headers={"X-Request-Timeout-Seconds": wrong})
        body = assert_problem(response, 422, "invalid-field")
        assert body["errors"][0]["field"] == "X-Request-Timeout-Seconds"


def test_who_stops_sending_gives_its_place_up_at_the_deadline(
    segmenter: InProcess, card: SegmenterCard, scene: Labelled
) -> None:
    client = Client(Port(segmenter), card, max_queued=2, request_timeout_s=0.5)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"--x\r\n"
        await asyncio.sleep(60)

    async def send() -> tuple[list[httpx.Response], httpx.Response]:
        transport = httpx.ASGITransport(client.app, raise_app_exceptions=False)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            stopped = await asyncio.gather(
                *(http.post("/v1/segment", content=stalled(), headers=headers) for _ in range(2))
            )
            sent = {"files": {"image": png(scene.image)}, "data": {"prompts": ["star"], "refine": "false"}}
            return stopped, await http.post("/v1/segment", **sent)

    started = time.perf_counter()
    stopped, after = asyncio.run(send())
    assert time.perf_counter() - started < 30
    for response in stopped:
        assert_problem(response, 504, "deadline-passed")
        assert response.headers["connection"] == "close"
    assert after.status_code != 503, "the places are free again"


def test_late_in_the_models_is_late(segmenter: InProcess, card: SegmenterCard, scene: Labelled) -> None:
    async def late() -> None:
        raise LateError

    assert_problem(Client(Port(segmenter, late), card).segment(png(scene.image), ["star"]), 504, "deadline-passed")


def test_late_in_writing_the_answer_is_late(
    segmenter: InProcess, card: SegmenterCard, scene: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, late_s = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: real() + late_s[0])

    async def long() -> None:
        late_s[0] += 1000

    response = Client(Port(segmenter, long), card).segment(png(scene.image), scene.prompts, format="png")
    assert_problem(response, 504, "deadline-passed")


def test_coarse_for_want_of_time_is_said(port: Port, client: Client, scene: Labelled) -> None:
    port.degraded = "deadline"
    body = found(client.segment(png(scene.image), scene.prompts))
    assert {result["degraded"] for result in body["results"]} == {"deadline"}
    assert all(result["reason"] for result in body["results"])


@pytest.mark.parametrize("by_link", [False, True])
def test_the_time_in_which_a_picture_is_on_its_way_is_no_work(
    port: Port, card: SegmenterCard, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    real, late_s = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: real() + late_s[0])
    client = Client(port, card, request_timeout_s=3600)
    admission = client.app.state.admissions["/v1/segment"]
    image = png(np.zeros((20, 20, 3), np.uint8))

    async def body() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        late_s[0] += 1000
        yield form([("prompts", b"star"), ("image", image)])[len(b"--b\r\n") :]

    async def fetch(url: str, *, max_bytes: int, timeout_s: float) -> bytes:
        late_s[0] += 1000
        return image

    monkeypatch.setattr("serve.pictures.fetch", fetch)
    admission.enter(60)  # somebody else, who is at it all the time
    if by_link:
        found(client.segment(None, ["star"], image_url="http://example.org/a.png"))
    else:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        request = {"method": "POST", "url": "/v1/segment", "content": body(), "headers": headers}
        found(client.requests(request)[0])
    assert admission.expected_s < 50
    late_s[0] += 1000  # nothing to do
    found(client.segment(image, ["star"]))
    assert admission.expected_s < 50


def test_a_picture_is_decoded_only_where_there_is_room(
    port: Port, card: SegmenterCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.pictures._MAX_BYTES", 100_000)
    client, meanwhile = Client(port, card), []
    large, small = (png(np.zeros((side, side, 3), np.uint8)) for side in (100, 20))

    async def others() -> None:
        port.before = None
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as other:
            form = {"files": {"image": large}}
            meanwhile.append(await other.post("/v1/classify", **form))
            meanwhile.append(await other.post("/v1/segment", **form, data={"prompts": "star"}))
            form = {"files": {"image": small}}
            meanwhile.append(await other.post("/v1/segment", **form, data={"prompts": "star"}))

    port.before = others
    found(client.segment(large, ["star"]))  # 80,000 bytes while it is decoded, then 30,000
    for response in meanwhile[:2]:
        assert_problem(response, 503, "busy")
    assert meanwhile[2].status_code == 200
    found(client.segment(large, ["star"]))


def test_request_ids_are_taken_over_if_they_are_sane(client: Client) -> None:
    for sent, kept in (("order-66", True), ("x" * 200, False), ("a b", False), ('"},{"', False)):
        response = client.segment(b"no picture", ["star"], headers={"X-Request-ID": sent})
        body = assert_problem(response, 400, "unreadable-picture")
        assert (body["request_id"] == sent) == kept


def test_the_description_has_every_route_with_examples(client: Client) -> None:
    (response,) = client.requests({"method": "GET", "url": "/openapi.json"})
    described = response.json()
    assert {
        *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
        *("/v1/models", "/v1/classify", "/v1/segment"),
    } == set(described["paths"])
    answers = described["paths"]["/v1/segment"]["post"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "image/png"}
    assert set(answers) == {*("200", "400", "401", "403", "413", "415", "422", "500", "502", "503", "504")}
    schemas = described["components"]["schemas"]
    for name in ("Segmentation", "Classification", "Models"):
        assert schemas[name]["examples"], name
    problem = answers["422"]["content"]["application/problem+json"]["schema"]
    assert problem["examples"] and "$ref" not in str(problem)
    fields = schemas["SegmentForm"]["properties"]
    assert all(field.get("description") for field in fields.values())
