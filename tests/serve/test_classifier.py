"""The classifier without Serve: requests at once share calls of its model, and none stands in another's way."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from core.images import PictureError, decode
from serve.classifier import LocalClassifier
from serve.schemas import Classification
from serve.settings import Settings

pytestmark = pytest.mark.anyio


class Counting(LocalClassifier):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.batches: list[int] = []

    def _classify_all(self, requests: Sequence[tuple[np.ndarray, int]]) -> list[Classification | PictureError]:
        self.batches.append(len(requests))
        return super()._classify_all(requests)

    def _fit(self, image: np.ndarray) -> np.ndarray | PictureError:
        return super()._fit(image) if image.any() else PictureError("black")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def classifier(checkpoint_folder: Path) -> Counting:
    return Counting(Settings(classifier=checkpoint_folder, max_batch_size=4, batch_wait_ms=150))


@pytest.fixture
def images(pictures: list[bytes]) -> list[np.ndarray]:
    return [decode(data, max_pixels=10**6) for data in pictures]


async def test_requests_at_once_share_calls_and_are_answered_as_alone(
    classifier: Counting, images: list[np.ndarray]
) -> None:
    alone = [await classifier.classify(image, 9) for image in images]
    assert classifier.batches == [1] * len(images)
    classifier.batches.clear()

    together = await asyncio.gather(*(classifier.classify(image, 9) for image in images))

    assert sum(classifier.batches) == len(images)
    assert len(classifier.batches) <= len(images) / 2
    assert max(classifier.batches) <= 4
    for one, other in zip(alone, together, strict=True):
        assert [(a.label, pytest.approx(a.score, abs=1e-5)) for a in one.predictions] == [
            (b.label, b.score) for b in other.predictions
        ]


async def test_a_picture_that_cannot_be_used_does_not_spoil_its_batch(
    classifier: Counting, images: list[np.ndarray]
) -> None:
    black = np.zeros_like(images[0])
    answers = await asyncio.gather(
        *(classifier.classify(image, 1) for image in (images[0], black, images[1])), return_exceptions=True
    )
    assert isinstance(answers[1], PictureError)
    assert [isinstance(answer, Classification) for answer in answers] == [True, False, True]


async def test_what_was_given_up_is_kept_out_of_the_next_call(classifier: Counting, images: list[np.ndarray]) -> None:
    asked = [asyncio.create_task(classifier.classify(image, 1)) for image in images]
    await asyncio.sleep(0)
    for task in asked[1:]:
        task.cancel()
    await asked[0]
    await asyncio.gather(*asked, return_exceptions=True)
    await classifier.classify(images[0], 1)
    assert sum(classifier.batches) < len(images)
