"""The segmenter's replica with the real demo models, in this process: its deployment without the transport."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.segment.labelled import Labelled, labelled_scene
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter as InProcess
from core.segment.results import PromptResult
from serve.feature_cache import FeatureCache
from serve.ports import LateError, SegmentAnswer, SegmentAsk
from serve.segmenter import Segmenter, _InLanes
from serve.settings import Settings
from serve.stages import ClipSegStage, Conductor

FIRST_SEED = 33_000_000  # neither trained on, nor calibrated with


@pytest.fixture(scope="module")
def scenes() -> list[Labelled]:
    return [labelled_scene(FIRST_SEED + number) for number in range(6)]


@pytest.fixture(scope="module")
def in_process() -> InProcess:
    return InProcess.from_preset("demo", precision="float32")


class Counted:
    """A replica, and the sizes of its models' calls."""

    def __init__(self, **settings: Any) -> None:
        # In float32, results do not depend on what shares a call.
        fields = {"dtype": "float32", "device": "cpu", "cache_mb": 64, **settings}
        replica: Any = Segmenter.func_or_class
        self.replica = replica(Settings(**fields), 1)
        self.grounded, self.encoded = self._count("clipseg"), self._count("sam2")

    def _count(self, stage: str) -> list[int]:
        model = self.replica._calls[stage]._model
        sizes: list[int] = []
        encode = model.encode_images

        def counting(images: Sequence[np.ndarray]) -> Any:
            sizes.append(len(images))
            return encode(images)

        model.encode_images = counting
        return sizes

    def ask(self, *asks: SegmentAsk) -> list[Any]:
        async def together() -> list[Any]:
            return await asyncio.gather(*map(self.replica.segment, asks), return_exceptions=True)

        return asyncio.run(together())

    def results(self, *asks: SegmentAsk) -> list[list[PromptResult]]:
        answers = self.ask(*asks)
        assert all(isinstance(answer, SegmentAnswer) for answer in answers), answers
        return [answer.results for answer in answers]


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


def ask(scene: Labelled, number_of_prompts: int = 2, **fields: Any) -> SegmentAsk:
    defaults: dict[str, Any] = {
        "image": scene.image,
        "key": str(hash(scene.image.tobytes())),
        "prompts": tuple(scene.prompts[:number_of_prompts]),
        "options": SegmentOptions(),
        "heatmaps": False,
        "timeout_s": 60.0,
    }
    return SegmentAsk(**{**defaults, **fields})


def assert_same(row: Sequence[PromptResult], other: Sequence[PromptResult]) -> None:
    assert [result.prompt for result in row] == [result.prompt for result in other]
    for one, two in zip(row, other, strict=True):
        assert one.presence == pytest.approx(two.presence, abs=1e-4)
        assert len(one.instances) == len(two.instances)
        for mine, theirs in zip(one.instances, two.instances, strict=True):
            assert np.array_equal(mine.mask, theirs.mask)
            assert (mine.source, mine.box_xyxy) == (theirs.source, theirs.box_xyxy)


def test_together_requests_share_calls_and_are_answered_as_alone(
    counted: Counted, scenes: list[Labelled], in_process: InProcess
) -> None:
    asks = [ask(scene, 1 + number % 3) for number, scene in enumerate(scenes)]
    rows = counted.results(*asks)
    assert sum(counted.grounded) >= len(scenes) > len(counted.grounded)  # closer looks are encoded too
    assert len(counted.encoded) < len(scenes)
    for row, one in zip(rows, asks, strict=True):
        ((*alone,),) = in_process.segment([one.image], [one.prompts])
        assert_same(row, alone)


def test_a_picture_seen_before_is_not_encoded_again(counted: Counted, scenes: list[Labelled]) -> None:
    first = counted.ask(ask(scenes[0]))
    counted.grounded.clear()
    counted.encoded.clear()
    again = counted.ask(ask(scenes[0]))
    assert (counted.grounded, counted.encoded) == ([], [])
    assert again[0].cached
    assert_same(first[0].results, again[0].results)
    other = counted.ask(ask(scenes[0], key="another file of the same size", image=scenes[1].image))
    assert not other[0].cached
    assert counted.grounded


def test_a_picture_that_breaks_the_model_does_not_spoil_its_neighbours(
    counted: Counted, scenes: list[Labelled], in_process: InProcess
) -> None:
    broken = ask(scenes[0], key="broken", image=np.zeros((4, 0, 3), np.uint8))
    one, bad, two = counted.ask(ask(scenes[1]), broken, ask(scenes[2]))
    assert isinstance(bad, Exception)
    for answer, scene in ((one, scenes[1]), (two, scenes[2])):
        ((*alone,),) = in_process.segment([scene.image], [scene.prompts[:2]])
        assert_same(answer.results, alone)


def test_heatmaps_travel_only_if_they_are_wanted(counted: Counted, scenes: list[Labelled]) -> None:
    without, with_them = counted.results(ask(scenes[0]), ask(scenes[0], heatmaps=True))
    assert {result.heatmap.size for result in without} == {0}
    assert {result.heatmap.shape for result in with_them} == {(128, 128)}


def test_too_late_for_anything(counted: Counted, scenes: list[Labelled]) -> None:
    (answer,) = counted.ask(ask(scenes[0], timeout_s=0.0))
    assert isinstance(answer, LateError)


def test_without_time_for_sam2_the_masks_are_coarse_and_it_is_said(
    scenes: list[Labelled], in_process: InProcess
) -> None:
    counted = Counted()
    counted.replica._pace.refine_s = 70.0
    (answer,) = counted.ask(ask(scenes[0], 3, timeout_s=60.0))
    assert answer.degraded == "deadline"
    assert counted.encoded == []
    coarse = SegmentOptions(refine=False)
    ((*alone,),) = in_process.segment([scenes[0].image], [scenes[0].prompts[:3]], coarse)
    assert_same(answer.results, alone)
    (answer,) = counted.ask(ask(scenes[0], 3, timeout_s=60.0))  # once is not for ever
    assert answer.degraded is None


def test_sam2_that_is_still_at_it_at_the_deadline_leaves_the_coarse_masks(
    scenes: list[Labelled], in_process: InProcess
) -> None:
    counted, released = Counted(), threading.Event()
    sam2 = counted.replica._calls["sam2"]._model
    encode = sam2.encode_images
    sam2.encode_images = lambda images: encode(images) if released.wait(60) else []
    try:
        (answer,) = counted.ask(ask(scenes[0], 3, timeout_s=5.0))
    finally:
        released.set()
    assert_coarse(answer, scenes[0].image, scenes[0].prompts[:3], in_process)
    assert counted.replica._pace.refine_s > 0, "the next one is not kept waiting for nothing"


def test_sam2_in_a_deployment_of_its_own_does_too(scenes: list[Labelled], in_process: InProcess) -> None:
    settings = Settings(dtype="float32", device="cpu", cache_mb=64)
    ground: Any = ClipSegStage.func_or_class
    conduct: Any = Conductor.func_or_class
    clipseg = ground(settings, 1)

    def handle(ask: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return SimpleNamespace(ask=SimpleNamespace(remote=lambda question: asyncio.ensure_future(ask(question))))

    async def never(_: Any) -> None:
        await asyncio.sleep(60)

    image = scenes[0].image[:128, :128]  # small enough to travel in the message
    conductor = conduct(settings, 64, 1, handle(clipseg.ask), handle(never))
    asked = ask(scenes[0], 3, image=image, key="part", timeout_s=5.0)
    assert_coarse(asyncio.run(conductor.segment(asked)), image, scenes[0].prompts[:3], in_process)


def assert_coarse(answer: Any, image: np.ndarray, prompts: Sequence[str], in_process: InProcess) -> None:
    assert isinstance(answer, SegmentAnswer) and answer.degraded == "deadline"
    ((*alone,),) = in_process.segment([image], [prompts], SegmentOptions(refine=False))
    assert_same(answer.results, alone)


def test_what_is_cancelled_is_not_worked_on(counted: Counted, scenes: list[Labelled]) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await counted.replica.segment(ask(scenes[3], key="cancelled"))

    counted.encoded.clear()
    asyncio.run(give_up())
    counted.results(ask(scenes[0]))  # queued behind it
    assert counted.encoded == []


def test_of_two_lanes_that_answer_the_last_questions_together_one_goes_on() -> None:
    resumed = []

    def resume(answers: list[Any], calls: list[Any]) -> None:
        resumed.append(answers)
        work.asked = ["the only one of the next step"]

    work: Any = SimpleNamespace(start=lambda: None, resume=resume, asked=["one", "two"], answer=None, kind="", order=0)
    batcher: Any = SimpleNamespace(put=lambda items: None)
    future: Any = SimpleNamespace(done=lambda: False)
    lanes: Any = _InLanes(work, batcher, SimpleNamespace(), future)

    class Overtaken:
        """A lock that the other lane takes, and has answered, as soon as the first lets go of it."""

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None:
            lanes._hears = threading.Lock()
            lanes._hear(1, "second", None)

    lanes.start()
    lanes._hears = Overtaken()
    lanes._hear(0, "first", None)
    assert resumed == [["first", "second"]]


def test_the_health_check_finds_a_model_that_is_broken() -> None:
    counted = Counted()
    model = counted.replica._calls["clipseg"]._model
    asyncio.run(counted.replica.check_health())
    model.model.decoder.transposed_convolution = None
    with pytest.raises(Exception):  # noqa: B017 - whatever the broken model raises
        asyncio.run(counted.replica.check_health())


def test_a_cache_is_bounded_in_bytes_and_keeps_what_is_used() -> None:
    events: list[tuple[bool, int]] = []
    cache = FeatureCache(100, lambda hit, nbytes: events.append((hit, nbytes)))
    for name in "abc":
        cache.put("model@1", name, np.zeros(40, np.uint8))
        cache.get("model@1", "a")
    assert cache.get("model@1", "a") is not None
    assert cache.get("model@1", "b") is None  # the least recently used
    assert cache.get("model@2", "a") is None  # another revision, another picture
    assert cache.nbytes == 80
    cache.put("model@1", "large", np.zeros(101, np.uint8))
    assert cache.get("model@1", "large") is None and cache.nbytes == 80
    cache.looked_up(hit=True)
    assert events == [(True, 80)]
