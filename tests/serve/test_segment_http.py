"""Answers over a real connection from a real Ray Serve, with both ways of laying out the models."""

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import assert_problem, empty_serve, png, post, post_together
from pycocotools import mask as coco
from ray import serve as ray_serve

from benchmarks.ports import free_port
from core.image_classifier import ImageClassifier
from core.images import decode
from core.segment.labelled import Labelled, labelled_scene
from core.segment.pipeline import Segmenter as InProcess
from serve.app import build
from serve.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-the-tests"
FIRST_SEED = 35_000_000
MAX_QUEUED = 12


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def serve_url(metrics_port: int) -> Iterator[str]:
    with empty_serve(_metrics_export_port=metrics_port) as url:
        yield url


DEPLOYMENTS = {
    "together": {"Ingress", "Segmenter"},
    "apart": {"Ingress", "Classifier", "Segmenter", "ClipSeg", "Sam2"},
}


@pytest.fixture(scope="module", params=list(DEPLOYMENTS))
def url(request: pytest.FixtureRequest, serve_url: str, checkpoint_folder: Path) -> Iterator[str]:
    settings = Settings(
        classifier=checkpoint_folder,
        stages=request.param,
        dtype="float32",
        cpus_per_replica=1,
        max_queued=MAX_QUEUED,
        request_timeout_s=55,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHWORK_API_KEYS", KEY)
        ray_serve.run(build(settings), name="patchwork", route_prefix="/")
    assert set(ray_serve.status().applications["patchwork"].deployments) == DEPLOYMENTS[request.param]
    yield serve_url
    ray_serve.delete("patchwork")


@pytest.fixture(scope="module")
def scenes() -> list[Labelled]:
    return [labelled_scene(FIRST_SEED + number) for number in range(8)]


@pytest.fixture(scope="module")
def in_process() -> InProcess:
    return InProcess.from_preset("demo", precision="float32")


def assert_as_in_process(response: httpx.Response, in_process: InProcess, scene: Labelled, prompts: Any) -> None:
    assert response.status_code == 200, response.text
    ((*expected,),) = in_process.segment([scene.image], [prompts])
    results = response.json()["results"]
    assert [result["prompt"] for result in results] == [result.prompt for result in expected]
    for result, wanted in zip(results, expected, strict=True):
        assert result["presence"] == pytest.approx(wanted.presence, abs=1e-3)
        assert len(result["instances"]) == len(wanted.instances)
        for instance, theirs in zip(result["instances"], wanted.instances, strict=True):
            counts: Any = {"size": instance["mask"]["size"], "counts": instance["mask"]["counts"].encode()}
            assert np.array_equal(coco.decode(counts).astype(bool), theirs.mask)


def segment_together(
    url: str, requests: Sequence[tuple[bytes, dict[str, Any]]], *, busy: bool = False, **headers: str
) -> list[httpx.Response]:
    return post_together(f"{url}/v1/segment", requests, busy=busy, headers={"X-API-Key": KEY, **headers})


def read_metrics(metrics_port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30).text


def calls_of(metrics_port: int, stage: str) -> tuple[float, float]:
    """How many calls a model has had, and how many items they answered, by Ray's metrics."""
    text = read_metrics(metrics_port)
    sums = []
    for suffix in ("count", "sum"):
        name = f"ray_patchwork_stage_batch_size_{suffix}{{"
        lines = [line for line in text.splitlines() if line.startswith(name) and f'stage="{stage}"' in line]
        sums.append(sum(float(line.rpartition(" ")[2]) for line in lines))
    return sums[0], sums[1]


def test_requests_at_once_share_calls_and_are_answered_as_in_process(
    url: str, scenes: list[Labelled], in_process: InProcess, metrics_port: int
) -> None:
    asked = [(png(scene.image), {"prompts": list(scene.prompts[: 1 + n % 2])}) for n, scene in enumerate(scenes)]
    responses = segment_together(url, [*asked[:4], (b"no picture", {"prompts": ["star"]}), *asked[4:]])
    assert_problem(responses.pop(4), 400, "unreadable-picture")
    for response, scene, (_, fields) in zip(responses, scenes, asked, strict=True):
        assert_as_in_process(response, in_process, scene, fields["prompts"])
    give_up = time.monotonic() + 60
    while (calls := calls_of(metrics_port, "clipseg"))[1] < len(scenes):
        assert time.monotonic() < give_up, "the metrics never showed the calls"
        time.sleep(0.5)
    assert calls[0] < calls[1]


def test_the_classifier_answers_as_in_process(
    url: str, scenes: list[Labelled], checkpoint_folder: Path, pictures: list[bytes]
) -> None:
    classifier = ImageClassifier.from_folder(checkpoint_folder, "cpu")
    asked = [png(scenes[0].image), *pictures[:7]]
    headers = {"X-API-Key": KEY}
    responses = post_together(f"{url}/v1/classify", [(data, {"top_k": 9}) for data in asked], headers=headers)
    for data, response in zip(asked, responses, strict=True):
        assert response.status_code == 200, response.text
        (expected,) = classifier.scores([classifier.fit(decode(data, max_pixels=10**6))])
        answer = {prediction["label"]: prediction["score"] for prediction in response.json()["predictions"]}
        assert answer == pytest.approx(dict(zip(classifier.class_names, expected.tolist(), strict=True)), abs=1e-5)


def test_a_picture_that_comes_again_is_not_encoded_again(url: str, scenes: list[Labelled]) -> None:
    fields = {"headers": {"Authorization": f"Bearer {KEY}"}, "prompts": "circle"}
    fresh = labelled_scene(FIRST_SEED + 100).image
    first, again = (post(f"{url}/v1/segment", png(fresh), **fields).json() for _ in range(2))
    assert (first["cache"]["image"], again["cache"]["image"]) == ("miss", "hit")
    assert first["results"] == again["results"]


def test_without_a_key_nothing_is_done(url: str, scenes: list[Labelled]) -> None:
    assert_problem(post(f"{url}/v1/segment", png(scenes[0].image), prompts="star"), 401, "unauthorized")
    assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200


def test_too_many_at_once_are_refused_and_the_next_is_answered(url: str) -> None:
    # Light ones: those that are let in must all be answered, on a slow machine too. Large ones from a busy client: what
    # is refused while it is still being sent, or before the client gets to read it, must be told so, not cut off.
    noise = png(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
    assert len(noise) > 2**20
    asked = [(noise, {"prompts": "star", "refine": "false"})] * (4 * MAX_QUEUED)
    responses = segment_together(url, asked, busy=True)
    refused = [response for response in responses if response.status_code != 200]
    assert refused
    for response in refused:
        assert_problem(response, 503, "busy")
        assert response.headers["retry-after"] == "1"
    assert len(responses) - len(refused) >= MAX_QUEUED
    assert segment_together(url, asked[:1])[0].status_code == 200


def test_a_deadline_that_cannot_be_met(url: str, scenes: list[Labelled]) -> None:
    asked = [(png(scene.image), {"prompts": list(scene.prompts)}) for scene in scenes]
    headers = {"X-Request-Timeout-Seconds": "1"}
    for response in segment_together(url, asked, **headers):
        if response.status_code == 200:  # a fast machine, or there was no time for SAM 2
            assert {result.get("degraded") for result in response.json()["results"]} <= {"deadline", None}
        else:
            assert response.status_code in (503, 504)
            assert_problem(response, response.status_code, {503: "busy", 504: "deadline-passed"}[response.status_code])


def test_the_dashboard_draws_what_is_exported(url: str, scenes: list[Labelled], metrics_port: int) -> None:
    drawn = set(re.findall(r"\bray_\w+", (ROOT / "docs" / "grafana.json").read_text()))
    documented = set(re.findall(r"^\| `(patchwork_\w+)`", (ROOT / "docs" / "service.md").read_text(), re.MULTILINE))
    assert documented <= {re.sub(r"^ray_|_(total|bucket|sum|count)$", "", name) for name in drawn}
    assert post(f"{url}/v1/classify", png(scenes[0].image), {"X-API-Key": KEY}).status_code == 200
    give_up = time.monotonic() + 60
    while missing := {name for name in drawn if f"\n{name}{{" not in read_metrics(metrics_port)}:
        assert time.monotonic() < give_up, f"not among the metrics: {missing}"
        time.sleep(0.5)
