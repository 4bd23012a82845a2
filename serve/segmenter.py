"""The segmenter as one Ray Serve deployment, with both models in each replica."""

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ray import serve

from core.runtime import bound_kernel_caches
from serve.batcher import Batcher, Call, Item
from serve.feature_cache import FeatureCache
from serve.metrics import CacheMetrics, StageMetrics
from serve.models import (
    CLIPSEG,
    SAM2,
    Answered,
    DecodeCalls,
    GroundCalls,
    load_calibration,
    load_clipseg,
    load_sam2,
)
from serve.ports import LateError, SegmentAnswer, SegmentAsk
from serve.proof import Proof
from serve.settings import Settings
from serve.work import Pace, Work


class ModelReplica:
    """A replica with models behind one `Batcher`; both are made after the metrics, which say what they do."""

    def __init__(self, settings: Settings, calls: Mapping[str, GroundCalls | DecodeCalls], num_cpus: int) -> None:
        torch.set_num_threads(num_cpus)
        bound_kernel_caches()
        self._calls = calls
        self._metrics = StageMetrics()
        self._proof = Proof(self._run_once)
        self._batcher = Batcher(
            calls,
            max_batch_size=settings.max_batch_size,
            wait_s=settings.batch_wait_ms / 1000,
            num_cpus=num_cpus,
            watch=self._watch,
            before=torch.set_num_threads,
        )
        self._run_once()

    async def ready(self) -> None:
        """That it answers at all means that the models have run."""

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        await self._proof.check()

    def _watch(self, stage: str, calls: Sequence[Call]) -> None:
        self._metrics.called(stage, calls)
        self._proof.renew()

    def _run_once(self) -> None:
        for call in self._calls.values():
            call.run_once()


@serve.deployment()
class Segmenter(ModelReplica):
    """Both models in one replica: requests that are here at the same time share the calls of both.

    Raises:
        ValueError: a checkpoint cannot be loaded (any more).
        RuntimeError: a model does not give finite numbers.
    """

    def __init__(self, settings: Settings, num_cpus: int) -> None:
        sam2, cache = load_sam2(settings), FeatureCache(settings.cache_bytes, CacheMetrics())
        self._calibration, self._low_res_size = load_calibration(settings), sam2.low_res_size
        self._pace = Pace()
        calls = {CLIPSEG: GroundCalls(load_clipseg(settings), cache), SAM2: DecodeCalls(sam2, cache)}
        super().__init__(settings, calls, num_cpus)

    async def segment(self, ask: SegmentAsk) -> SegmentAnswer | LateError:
        """The answer, or as a value, as raised it would come wrapped with a traceback, that it is too late for one."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[SegmentAnswer] = loop.create_future()
        work = Work(ask, self._calibration, self._low_res_size, self._pace)
        _InLanes(work, self._batcher, loop, future).start()
        try:
            async with asyncio.timeout(ask.timeout_s):
                return await future
        except (LateError, TimeoutError):
            return await loop.run_in_executor(None, work.late)


class _InLanes:
    """A `Work` advanced by the threads that call the models: what neighbours in a call ask next is asked together."""

    def __init__(
        self, work: Work, batcher: Batcher, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[SegmentAnswer]"
    ) -> None:
        self._work, self._batcher, self._loop, self._future = work, batcher, loop, future
        self._answered: list[tuple[Answered, Call] | None] = []
        self._hears = threading.Lock()

    def start(self) -> None:
        self._step(self._work.start, can_wait=True)

    def _step(self, step: Callable[..., None], *arguments: Any, can_wait: bool = False) -> None:
        try:
            step(*arguments)
        except Exception as error:
            self._fail(error)
            return
        if self._work.answer is not None:
            self._end(self._future.set_result, self._work.answer)
            return
        assert self._work.asked is not None
        self._answered = [None] * len(self._work.asked)
        items = [
            Item(
                kind=self._work.kind,
                payload=asked,
                order=self._work.order,
                done=functools.partial(self._hear, place),
                is_wanted=self._is_wanted,
                can_wait=can_wait,
            )
            for place, asked in enumerate(self._work.asked)
        ]
        self._batcher.put(items)

    def _hear(self, place: int, answer: Any, call: Call) -> None:
        if isinstance(answer, Exception):
            self._fail(answer)
            return
        # Of two lanes that answer the last two questions at the same time, one goes on.
        with self._hears:
            self._answered[place] = (answer, call)
            done = [one for one in self._answered if one is not None]
            is_complete = len(done) == len(self._answered)
        if is_complete and not self._future.done():
            self._step(self._work.resume, [one for one, _ in done], [call for _, call in done])

    def _is_wanted(self) -> bool:
        """Nobody waits any more for what is cancelled, and what is late is over."""
        if self._work.is_late:
            self._fail(LateError())
            return False
        return not self._future.done()

    def _fail(self, error: Exception) -> None:
        self._end(self._future.set_exception, error)

    def _end(self, settle: Callable[[Any], None], outcome: object) -> None:
        self._loop.call_soon_threadsafe(lambda: self._future.done() or settle(outcome))
