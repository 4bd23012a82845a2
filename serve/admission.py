"""Who is let in: at most so many requests at once, and none that cannot be answered in its time."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve import problems
from serve.problems import Problem

_SMOOTHING = 0.1


class Admission:
    """Counts the requests in hand, and learns from the answers how fast they leave. For one event loop."""

    def __init__(self, max_in_hand: int) -> None:
        self.in_hand = 0
        self.is_closed = False
        self._max_in_hand = max_in_hand
        self._per_answer_s = 0.0
        self._last_answer = -math.inf

    @property
    def expected_s(self) -> float:
        """How long a request that came now would take, if answers go on leaving as they did while there was work.

        Work is on requests whose pictures are here: what clients and links' servers take says nothing of the models.
        """
        return (self.in_hand + 1) * self._per_answer_s

    def enter(self, left_s: float) -> None:
        """Let a request in that has `left_s` seconds left.

        Raises:
            Problem: there are too many already, it cannot be answered in that time, or the service is ending.
        """
        if self.is_closed:
            raise Problem(problems.UNAVAILABLE, "The service is ending; try again shortly.")
        if self.in_hand >= self._max_in_hand:
            raise Problem(problems.BUSY, f"{self.in_hand} requests are waiting or at work; try again shortly.")
        if self.in_hand and self.expected_s > left_s:
            expected = self.expected_s
            # Answers that never come teach nothing: the estimate must not keep everybody out for good.
            self._per_answer_s *= 1 - _SMOOTHING
            detail = f"An answer would take about {expected:.1f} s; this request has {max(left_s, 0):.2g} s."
            raise Problem(problems.BUSY, detail)
        self.in_hand += 1

    def leave(self, *, worked_since: float | None) -> None:
        """Let a request go.

        Args:
            worked_since: when the picture was here, by `time.perf_counter`; None if there was no answer: what was
                refused or given up says nothing of the models' speed.
        """
        self.in_hand -= 1
        if worked_since is not None:
            now = time.perf_counter()
            took = now - max(self._last_answer, worked_since)
            self._per_answer_s += _SMOOTHING * (took - self._per_answer_s)
            self._last_answer = now


class PictureMemory:
    """Bounds the bytes of pictures in this process, decoded or at it: a small file can be a large picture."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._changes = threading.Lock()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Raises Problem if that is more than there is room for; one picture always has room."""
        with self._changes:
            if self._held and self._held + nbytes > self._max_bytes:
                raise Problem(problems.BUSY, "The pictures at work fill the memory meant for them; try again shortly.")
            self._held += nbytes
        try:
            yield
        finally:
            self.add(-nbytes)

    def add(self, nbytes: int) -> None:
        """Account for what is there in any case, or is gone."""
        with self._changes:
            self._held += nbytes
