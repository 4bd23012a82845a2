"""What the OpenAPI description allows, and what it forbids, is sent: every answer is one that it announces."""

from collections import Counter
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hostile import any_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pixel_models import IMAGE_SIZE, SEGMENTER, PixelModels
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from serve.ingress import create_app
from serve.settings import Settings

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"),
]
_PICTURE = "image/x-of-any-kind"
schemathesis.openapi.media_type(_PICTURE, st.integers(0, 2**32 - 1).map(any_picture))


def describe_pictures(app: FastAPI) -> None:
    """Say in the description that the file is a picture, for which FastAPI has no words, and that it has to be there.

    Otherwise little but noise is sent, or a link beside the file, and all of it refused.
    """
    description = app.openapi()
    for path in ("/v1/classify", "/v1/segment"):
        (content,) = description["paths"][path]["post"]["requestBody"]["content"].values()
        content["encoding"] = {"image": {"contentType": _PICTURE}}
    for name in ("ClassifyForm", "SegmentForm"):
        form = description["components"]["schemas"][name]
        (file,) = (kind for kind in form["properties"]["image"]["anyOf"] if kind["type"] == "string")
        form["properties"]["image"] = file
        del form["properties"]["image_url"]
        form["required"] = ["image", *form.get("required", ())]
    app.openapi_schema = description


def described_app() -> FastAPI:
    models = PixelModels()
    limits = Settings(max_upload_mb=0.5, max_pixels=200_000, allow_urls=False)
    app = create_app(limits, IMAGE_SIZE, models, models, SEGMENTER)
    describe_pictures(app)
    return app


# At import, as there is to be a test for every route that the description names.
OPERATIONS: list[Any] = [
    found.ok()  # pyright: ignore[reportAttributeAccessIssue]  # an error here is raised, as it should be
    for found in schemathesis.openapi.from_asgi("/openapi.json", described_app()).get_all_operations()
]
POSTS = [operation for operation in OPERATIONS if operation.method == "post"]


def statuses_of(operation: Any, mode: GenerationMode, requests: int) -> Counter[int]:
    """Send so many requests that are described, or that are not, and check each answer against the description."""
    seen: Counter[int] = Counter()

    @settings(
        max_examples=requests,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=operation.as_strategy(mode))
    def send(case: schemathesis.Case) -> None:
        response = case.call(timeout=120)  # the first polygons wait for scikit-image to be loaded
        case.validate_response(
            response, checks=[not_a_server_error, content_type_conformance, response_schema_conformance]
        )
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"]
        assert "Traceback" not in response.text
        seen[response.status_code] += 1

    send()
    return seen


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one not in POSTS], ids=lambda one: one.label)
def test_what_is_asked_of_health_and_models_is_answered(operation: Any) -> None:
    assert set(statuses_of(operation, GenerationMode.POSITIVE, 5)) == {200}


@pytest.mark.parametrize("operation", POSTS, ids=lambda one: one.label)
def test_described_uploads(operation: Any) -> None:
    seen = statuses_of(operation, GenerationMode.POSITIVE, 80)
    # Real pictures were among them, good ones and bad ones.
    assert seen[200] > 5 and seen[400] > 5
    assert set(seen) <= {200, 400, 403, 413, 422}


@pytest.mark.parametrize("operation", POSTS, ids=lambda one: one.label)
def test_uploads_that_break_the_description(operation: Any) -> None:
    seen = statuses_of(operation, GenerationMode.NEGATIVE, 80)
    assert seen[422] > 5
    assert set(seen) <= {200, 400, 403, 413, 415, 422}
