"""The models apart: CLIPSeg and SAM 2 as deployments of their own, and one that leads requests through them."""

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from core.segment.questions import Decode, EncodedImage, Ground
from core.segment.sam2 import MaskCandidates
from serve.batcher import Call, Item
from serve.feature_cache import FeatureCache
from serve.metrics import CacheMetrics
from serve.models import (
    CLIPSEG,
    SAM2,
    Answered,
    Asked,
    DecodeCalls,
    GroundCalls,
    load_calibration,
    load_clipseg,
    load_sam2,
)
from serve.ports import LateError, SegmentAnswer, SegmentAsk, StageDownError
from serve.segmenter import ModelReplica
from serve.settings import Settings
from serve.work import Pace, Work

# Smaller arrays travel within the message.
_WORTH_STORING = 100_000
_UNSEEN = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """An `Asked` on its way to another process.

    image: one array, or the reference to one: in a list, or Ray would fetch the picture also where it is not needed.
    """

    key: str
    image: list[Any]
    prompts: tuple[Any, ...]
    order: float
    timeout_s: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reply:
    """The answer to a `Question`; masks as arrays, as (logits, predicted IoUs)."""

    answer: Any
    cached: bool
    call: Call


class _Stage(ModelReplica):
    """One model, which answers the questions that wait together in one call."""

    def __init__(
        self,
        settings: Settings,
        num_cpus: int,
        kind: str,
        model: GroundCalls | DecodeCalls,
        call_of: Callable[[EncodedImage, tuple[Any, ...]], Ground | Decode],
    ) -> None:
        self._kind, self._model, self._call_of = kind, model, call_of
        super().__init__(settings, {kind: model}, num_cpus)

    async def ask(self, question: Question) -> Reply | LateError:
        """The reply, or as a value, as raised it would come wrapped with a traceback, that it is too late for one."""
        loop = asyncio.get_running_loop()
        until = loop.time() + question.timeout_s
        picture = EncodedImage(_UNSEEN)
        # A picture that is known need not come.
        if not self._model.recall(picture, question.key):
            image = question.image[0]
            picture.image = await image if isinstance(image, ray.ObjectRef) else image
        future: asyncio.Future[tuple[Answered, Call]] = loop.create_future()
        item = Item(
            kind=self._kind,
            payload=Asked(self._call_of(picture, question.prompts), question.key),
            order=question.order,
            done=lambda answer, call: loop.call_soon_threadsafe(_settle, future, answer, call),
            is_wanted=lambda: not future.done(),
        )
        self._batcher.put([item])
        try:
            async with asyncio.timeout_at(until):
                answered, call = await future
        except TimeoutError:
            return LateError()
        return Reply(answer=_without_tensors(answered.answer), cached=answered.cached, call=call)


def _settle(future: "asyncio.Future[tuple[Answered, Call]]", answer: Answered | Exception, call: Call) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result((answer, call))


def _without_tensors(answer: Any) -> Any:
    if isinstance(answer, np.ndarray):
        return answer
    return [(one.mask_logits.numpy(), one.iou_scores.numpy()) for one in answer]


def _with_tensors(answer: Any) -> Any:
    if isinstance(answer, np.ndarray):
        return answer
    # Copied, as what came from another process is read-only, which a tensor cannot be.
    return [MaskCandidates(torch.from_numpy(a.copy()), torch.from_numpy(b.copy())) for a, b in answer]


@serve.deployment()
class ClipSegStage(_Stage):
    """Raises ValueError if the checkpoint cannot be loaded (any more), RuntimeError if it gives no finite numbers."""

    def __init__(self, settings: Settings, num_cpus: int) -> None:
        cache = FeatureCache(settings.cache_bytes, CacheMetrics())
        super().__init__(settings, num_cpus, CLIPSEG, GroundCalls(load_clipseg(settings), cache), Ground)


@serve.deployment()
class Sam2Stage(_Stage):
    """Raises ValueError if the checkpoint cannot be loaded (any more), RuntimeError if it gives no finite numbers."""

    def __init__(self, settings: Settings, num_cpus: int) -> None:
        cache = FeatureCache(settings.cache_bytes, CacheMetrics())
        super().__init__(settings, num_cpus, SAM2, DecodeCalls(load_sam2(settings), cache), Decode)


@serve.deployment()
class Conductor:
    """Takes requests through the stages: everything of a segmentation but the models.

    Args:
        low_res_size: side of SAM 2's mask logits.
    """

    def __init__(
        self, settings: Settings, low_res_size: int, num_cpus: int, clipseg: DeploymentHandle, sam2: DeploymentHandle
    ) -> None:
        torch.set_num_threads(1)
        self._stages = {CLIPSEG: clipseg, SAM2: sam2}
        self._calibration, self._low_res_size = load_calibration(settings), low_res_size
        self._pace = Pace()
        self._threads = ThreadPoolExecutor(num_cpus, thread_name_prefix="flow")

    async def ready(self) -> None:
        """Returns once the models are loaded and have run."""
        await asyncio.gather(*(_heard(stage.ready.remote()) for stage in self._stages.values()))

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer | LateError | StageDownError:
        """The answer, or what came in its way, as a value: raised, it would come wrapped with a traceback."""
        work = Work(ask, self._calibration, self._low_res_size, self._pace)
        try:
            async with asyncio.timeout(ask.timeout_s):
                return await self._lead(work)
        except (LateError, TimeoutError):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work.late)
        except StageDownError as error:
            return error
        except (DeploymentUnavailableError, RayActorError):
            return StageDownError()

    async def _lead(self, work: Work) -> SegmentAnswer:
        loop = asyncio.get_running_loop()
        # Held until the request is answered: the stages fetch from them.
        stored: dict[str, Any] = {}
        await loop.run_in_executor(self._threads, work.start)
        while work.answer is None:
            assert work.asked is not None
            stage = self._stages[work.kind]
            questions = [self._question(asked, work, stored) for asked in work.asked]
            responses = [stage.ask.remote(one) for one in questions]
            replies = await asyncio.gather(*map(_heard, responses))
            if any(isinstance(reply, LateError) for reply in replies):
                raise LateError
            answered = [Answered(_with_tensors(reply.answer), reply.cached) for reply in replies]
            step = functools.partial(work.resume, answered, [reply.call for reply in replies])
            await loop.run_in_executor(self._threads, step)
        return work.answer

    def _question(self, asked: Asked, work: Work, stored: dict[str, Any]) -> Question:
        image = asked.call.picture.image
        if asked.key not in stored:
            stored[asked.key] = ray.put(image) if image.nbytes > _WORTH_STORING else image
        return Question(
            key=asked.key,
            image=[stored[asked.key]],
            prompts=asked.call.prompts,
            order=work.order,
            timeout_s=max(0.0, work.deadline - time.perf_counter()),
        )


async def _heard(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
