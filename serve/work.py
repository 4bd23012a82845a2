"""One request on its way through the models: its flow, its clock, and what it took."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.segment.calibration import Calibration
from core.segment.flow import Flow, flow
from core.segment.questions import Decode, EncodedImage, Ground
from core.segment.results import PromptResult
from serve.batcher import Call
from serve.models import CLIPSEG, SAM2, Answered, Asked, content_key
from serve.ports import LateError, SegmentAnswer, SegmentAsk, StageTimes

OUT_OF_TIME = "deadline"
# How much one request's duration counts against those before it.
_SMOOTHING = 0.2
_NO_HEATMAP = np.zeros((0, 0), np.float32)


class Pace:
    """How long SAM 2's part of a request has taken lately, waiting included."""

    def __init__(self) -> None:
        self.refine_s = 0.0

    def saw(self, seconds: float) -> None:
        self.refine_s += _SMOOTHING * (seconds - self.refine_s)

    def saw_no_end_of(self, seconds: float) -> None:
        """It had not come to its end by then."""
        self.refine_s = max(self.refine_s, seconds)

    def gave_up(self) -> None:
        """Nothing was learnt: the next in like straits may be the one that tries again."""
        self.refine_s *= 1 - _SMOOTHING


class Work:
    """Advances the flow of one request. Not thread-safe, but for `late`: one thread at a time.

    `asked` is what the models are to be asked next, None once `answer` is there. `order`: of requests, by wall clock.

    Raises, in `start` and `resume`:
        LateError: the time has passed, and there is not even a heatmap.
    """

    def __init__(self, ask: SegmentAsk, calibration: Calibration, low_res_size: int, pace: Pace) -> None:
        self.order = time.time()
        self.deadline = time.perf_counter() + ask.timeout_s
        self.asked: list[Asked] | None = None
        self.answer: SegmentAnswer | None = None
        self._ask, self._calibration, self._low_res_size, self._pace = ask, calibration, low_res_size, pace
        self._times = StageTimes()
        self._cached = False
        self._heard: list[list[Any]] = []
        self._grounded: Sequence[list[Any]] | None = None
        self._refining_since: float | None = None
        self._picture = EncodedImage(ask.image)
        self._keys: dict[EncodedImage, str] = {self._picture: ask.key}
        self._flow = self._new_flow(refine=ask.options.refine)

    @property
    def kind(self) -> str:
        """The model that `asked` is for."""
        assert self.asked
        return CLIPSEG if isinstance(self.asked[0].call, Ground) else SAM2

    @property
    def is_late(self) -> bool:
        return time.perf_counter() > self.deadline

    def start(self) -> None:
        if self.is_late:
            raise LateError
        self._advance(None)

    def resume(self, answered: Sequence[Answered], calls: Sequence[Call]) -> None:
        """Go on with the answers to `asked`; `calls`: what each of them took."""
        if not self._heard:
            self._cached = answered[0].cached
        self._count(calls)
        self._advance([one.answer for one in answered])

    def late(self) -> SegmentAnswer | LateError:
        """What there is when the time has passed, whatever a model is still at: the answer without SAM 2, or none."""
        if self._grounded is None:
            return LateError()
        if self._refining_since is not None:
            self._pace.saw_no_end_of(time.perf_counter() - self._refining_since)
        return self._told(self._coarse(self._grounded), degraded=OUT_OF_TIME)

    def _advance(self, answers: list[Any] | None) -> None:
        try:
            wanted = next(self._flow) if answers is None else self._flow.send(answers)
        except StopIteration as done:
            self._finish(done.value)
            return
        if answers is not None:
            self._heard.append(answers)
        if isinstance(wanted[0], Decode) and self._grounded is None:
            self._grounded = tuple(self._heard)
            if time.perf_counter() + self._pace.refine_s > self.deadline:
                self._pace.gave_up()
                self._finish(self._coarse(self._grounded), degraded=OUT_OF_TIME)
                return
            self._refining_since = time.perf_counter()
        elif self.is_late:
            raise LateError
        self.asked = [Asked(call, self._key_of(call.picture)) for call in wanted]

    def _coarse(self, heard: Sequence[list[Any]]) -> list[PromptResult]:
        """The same as without refinement: told again what the heatmaps were, the flow arrives there without a model."""
        again = self._new_flow(refine=False)
        try:
            next(again)
            for answers in heard:
                again.send(answers)
        except StopIteration as done:
            return done.value
        raise AssertionError("without refinement a flow asks for the same heatmaps, and for nothing else")

    def _finish(self, results: list[PromptResult], degraded: str | None = None) -> None:
        if self._refining_since is not None:
            self._pace.saw(time.perf_counter() - self._refining_since)
        self.asked = None
        self.answer = self._told(results, degraded)

    def _told(self, results: list[PromptResult], degraded: str | None) -> SegmentAnswer:
        if not self._ask.heatmaps:
            results = [dataclasses.replace(result, heatmap=_NO_HEATMAP) for result in results]
        return SegmentAnswer(results=results, cached=self._cached, degraded=degraded, times=self._times)

    def _count(self, calls: Sequence[Call]) -> None:
        # What is asked together mostly shares one call: the longest, not the sum.
        self._times.queue += 1000 * max(call.waited_s for call in calls)
        ran = 1000 * max(call.ran_s for call in calls)
        if self.kind == CLIPSEG:
            self._times.clipseg += ran
        else:
            self._times.sam2 += ran

    def _key_of(self, picture: EncodedImage) -> str:
        if picture not in self._keys:
            self._keys[picture] = content_key(picture.image)
        return self._keys[picture]

    def _new_flow(self, *, refine: bool) -> Flow:
        options = dataclasses.replace(self._ask.options, refine=refine)
        return flow(self._picture, self._ask.prompts, options, self._calibration, self._low_res_size)
