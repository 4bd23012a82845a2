"""The application on a real Ray Serve, over a real connection."""

import asyncio
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from live import assert_problem, empty_serve, post, post_together
from PIL import Image
from ray import serve as ray_serve

from core.augment import normalise
from core.checkpoint import load
from serve.app import build
from serve.classifier import Classifier
from serve.ingress import Ingress
from serve.ports import SegmenterCard
from serve.schemas import Classification, ModelName, Prediction
from serve.settings import Settings

SLOW, BROKEN, DYING = 100, 101, 102  # values of `top_k` that the troubled classifier obeys
CARD = SegmenterCard(preset="demo", clipseg="none", sam2="none", device="cpu", low_res_size=64)


@pytest.fixture(scope="module")
def ray_serve_url() -> Iterator[str]:
    with empty_serve() as url:
        yield url


@pytest.fixture(scope="module")
def url(ray_serve_url: str, checkpoint_folder: Path) -> str:
    """The application as `build` makes it for stages that are apart, its classifier counting the calls of its model."""

    real: Any = Classifier.func_or_class

    class Counting(real):
        def __init__(self, settings: Settings) -> None:
            self.batches: list[int] = []
            super().__init__(settings)

        def _classify_all(self, requests: Any) -> Any:
            self.batches.append(len(requests))
            time.sleep(0.05)  # as a larger model takes: this one is done before the next request has come
            return super()._classify_all(requests)

        async def take_batches(self) -> list[int]:
            batches, self.batches = self.batches, []
            return batches

    settings = Settings(
        classifier=checkpoint_folder, stages="apart", max_batch_size=16, batch_wait_ms=150, max_upload_mb=1
    )
    with pytest.MonkeyPatch.context() as patch:
        # By its own options, so that only the class is another. Health checks would be counted too.
        counting = Classifier.options(func_or_class=Counting, health_check_period_s=3600)
        patch.setattr("serve.classifier.Classifier", counting)
        ray_serve.run(build(settings), name="classifier", route_prefix="/")
    return ray_serve_url


@pytest.fixture(scope="module")
def troubled_url(ray_serve_url: str, checkpoint_folder: Path) -> str:
    """The real ingress before a classifier that is slow, breaks or dies, as told; one request runs and one waits."""

    @ray_serve.deployment(max_ongoing_requests=1, max_queued_requests=1, ray_actor_options={"num_cpus": 0})
    class Troubled:
        async def outcome(self, image: np.ndarray, top_k: int) -> Classification:
            if top_k == SLOW:
                await asyncio.sleep(60)
            if top_k == BROKEN:
                raise RuntimeError("secret")
            if top_k == DYING:
                os._exit(1)
            return Classification(
                predictions=[Prediction(label="fine", score=1)], model=ModelName(name="troubled", revision="0")
            )

    settings = Settings(classifier=checkpoint_folder, request_timeout_s=1.5)
    troubled = Troubled.bind()
    app = Ingress.options(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}).bind(
        settings, 32, troubled, troubled, CARD, ()
    )
    ray_serve.run(app, name="troubled", route_prefix="/troubled")
    return f"{ray_serve_url}/troubled"


def classify(url: str, data: bytes, **fields: Any) -> httpx.Response:
    return post(f"{url}/v1/classify", data, **fields)


def classify_together(url: str, files: list[bytes], **fields: Any) -> list[httpx.Response]:
    return post_together(f"{url}/v1/classify", [(data, fields) for data in files])


def scores(response: httpx.Response) -> dict[str, float]:
    assert response.status_code == 200, response.text
    return {prediction["label"]: prediction["score"] for prediction in response.json()["predictions"]}


def test_the_answer_is_the_models(url: str, checkpoint_folder: Path, pictures: list[bytes]) -> None:
    checkpoint = load(checkpoint_folder)
    pixels = torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(data))) for data in pictures[:3]]))
    with torch.inference_mode():
        logits = checkpoint.model(normalise(pixels, torch.tensor(checkpoint.mean), torch.tensor(checkpoint.std)))
    for data, expected in zip(pictures, logits.softmax(dim=1).tolist(), strict=False):
        answer = scores(classify(url, data))
        assert answer == pytest.approx(dict(zip(checkpoint.class_names, expected, strict=True)), abs=1e-5)
        assert list(answer.values()) == sorted(answer.values(), reverse=True)


def test_top_k_limits_the_answer(url: str, pictures: list[bytes]) -> None:
    whole, best = scores(classify(url, pictures[0])), scores(classify(url, pictures[0], top_k=1))
    assert len(whole) == 4
    assert list(best) == [max(whole, key=whole.__getitem__)]


def test_requests_that_arrive_together_share_model_calls(url: str, pictures: list[bytes]) -> None:
    alone = [scores(classify(url, data)) for data in pictures]
    classifier = ray_serve.get_deployment_handle("Classifier", "classifier")
    classifier.take_batches.remote().result()

    together = [scores(response) for response in classify_together(url, pictures)]

    batches = classifier.take_batches.remote().result()
    assert sum(batches) == len(pictures)
    assert len(batches) <= 8
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert len({max(answer.values()) for answer in alone}) == len(pictures)  # or any order would have passed


def test_health_and_models(url: str, checkpoint_folder: Path) -> None:
    for path, body in {
        "/healthz": "live",
        "/v2/health/live": "live",
        "/readyz": "ready",
        "/v2/health/ready": "ready",
    }.items():
        assert httpx.get(url + path).json() == {body: True}
    [model] = httpx.get(f"{url}/v1/models").json()["models"]
    assert model["name"] == "vit-tiny"
    assert model["class_names"] == list(load(checkpoint_folder).class_names)
    assert model["device"] == "cpu"


def test_bad_requests_get_problems(url: str, pictures: list[bytes]) -> None:
    assert_problem(classify(url, b"not a picture"), 400, "unreadable-picture")
    assert_problem(classify(url, pictures[0], top_k=0), 422, "invalid-field")
    assert_problem(httpx.post(f"{url}/v1/classify", json={}), 415, "unsupported-media-type")
    assert_problem(httpx.get(f"{url}/nothing"), 404, "not-found")
    assert_problem(httpx.get(f"{url}/v1/classify"), 405, "method-not-allowed")


def test_a_large_upload_is_refused_and_the_next_request_answered(url: str, pictures: list[bytes]) -> None:
    with httpx.Client(timeout=60) as client:
        response = client.post(f"{url}/v1/classify", files={"image": bytes(3_000_000)})
        assert_problem(response, 413, "body-too-large")
        assert client.post(f"{url}/v1/classify", files={"image": pictures[0]}).status_code == 200


def test_a_bad_picture_does_not_spoil_its_batch(url: str, pictures: list[bytes]) -> None:
    statuses = [r.status_code for r in classify_together(url, [pictures[0], b"not a picture", pictures[1]])]
    assert statuses == [200, 400, 200]


def test_a_full_queue_and_a_passed_deadline(troubled_url: str, pictures: list[bytes]) -> None:
    responses = classify_together(troubled_url, pictures[:8], top_k=SLOW)
    refused = [response for response in responses if response.status_code == 503]
    assert refused
    for response in refused:
        assert_problem(response, 503, "busy")
        assert response.headers["retry-after"] == "1"
    late = [response for response in responses if response.status_code != 503]
    assert late
    for response in late:
        assert_problem(response, 504, "deadline-passed")
    # What was given up on no longer stands in the way, though it would have taken a minute.
    assert scores(classify(troubled_url, pictures[0])) == {"fine": 1.0}


def test_a_failure_of_the_model_is_not_shown(troubled_url: str, pictures: list[bytes]) -> None:
    response = classify(troubled_url, pictures[0], top_k=BROKEN)
    assert_problem(response, 500, "internal-error")
    assert "secret" not in response.text


def test_a_replica_that_dies_is_replaced(troubled_url: str, pictures: list[bytes]) -> None:
    assert_problem(classify(troubled_url, pictures[0], top_k=DYING), 503, "unavailable")
    give_up = time.monotonic() + 60
    while (response := classify(troubled_url, pictures[0])).status_code != 200:
        assert response.status_code in (503, 504), response.text
        assert time.monotonic() < give_up
        time.sleep(0.2)
