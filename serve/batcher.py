"""Calls of a model shared by what waits for it: no item waits while a thread is free, unless others are on their way.

Ray Serve's own `serve.batch` lets a lone request wait its whole time out, fails all of a batch for one of its items,
and lets a batch's results out one by one, so that what they ask next arrives in pieces.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_LOG = logging.getLogger("ray.serve")

# Threads of one replica that call models at the same time: each holds a batch in memory.
_MAX_LANES = 4


@dataclass(frozen=True, slots=True)
class Call:
    """What an item went through: seconds that it waited, seconds of its call, and how many shared that."""

    waited_s: float
    ran_s: float
    num_items: int


@dataclass(kw_only=True, slots=True, eq=False)
class Item:
    """Something for a model to answer.

    order: what has the lowest is called first: the time at which its request came. done: told the answer, or the
    exception in its place, in the thread that made the call; what it puts is taken up together with what its
    neighbours put. is_wanted: asked before the call is made. can_wait: whether more of the kind may be on the way.
    """

    kind: str
    payload: Any
    order: float
    done: Callable[[Any, Call], object]
    is_wanted: Callable[[], bool] = lambda: True
    can_wait: bool = True
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Threads ("lanes") that call models on what waits, items of one kind together.

    While few requests are there, a lane takes them all and its call has all the cores; when many wait, they are shared
    out among the lanes, whose calls have a core each: small models gain more from that than from threads in a call.

    Args:
        calls: for each kind, what answers a list of payloads, in order.
        wait_s: how long a lane waits for company, if its last call had some.
        watch: told of every call: kind, the items' calls.
        before: called in the lane before a call, with the number of cores that it may use.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[[list[Any]], Sequence[Any]]],
        *,
        max_batch_size: int,
        wait_s: float,
        num_cpus: int = 1,
        watch: Callable[[str, Sequence[Call]], None] | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self._calls, self._max_batch_size, self._wait_s = calls, max_batch_size, wait_s
        self._watch, self._before = watch, before
        self._num_cpus = num_cpus
        self._waiting: list[Item] = []
        self._idle, self._busy = 0, 0
        self._company = False
        self._wakes = threading.Condition()
        self._outbox = threading.local()
        for number in range(min(num_cpus, _MAX_LANES)):
            threading.Thread(target=self._run, name=f"lane-{number}", daemon=True).start()

    def put(self, items: Sequence[Item]) -> None:
        """Queue items; their `done` is called later, also for those that fail."""
        outbox = getattr(self._outbox, "items", None)
        if outbox is not None:
            outbox += items
            return
        with self._wakes:
            self._waiting += items
            self._wakes.notify_all()

    def _run(self) -> None:
        while True:
            batch, cpus = self._take()
            self._outbox.items = []
            try:
                if batch:
                    self._answer(batch, cpus)
            finally:
                follow, self._outbox.items = self._outbox.items, None
                with self._wakes:
                    self._busy -= 1
                    self._waiting += follow
                    self._wakes.notify_all()

    def _take(self) -> tuple[list[Item], int]:
        with self._wakes:
            self._idle += 1
            while not self._waiting:
                self._wakes.wait()
            if self._company and self._busy == 0:
                self._gather()
            share = -(-len(self._waiting) // self._idle)
            self._idle -= 1
            self._busy += 1
            batch: list[Item] = []
            if self._waiting:
                self._waiting.sort(key=lambda item: item.order)
                kind = self._waiting[0].kind
                fitting = [item for item in self._waiting if item.kind == kind]
                batch = fitting[: min(max(share, 1), self._max_batch_size)]
                taken = set(map(id, batch))
                self._waiting = [item for item in self._waiting if id(item) not in taken]
                self._company = len(batch) > 1 or bool(self._waiting)
            return batch, max(1, self._num_cpus // self._busy)

    def _gather(self) -> None:
        """Wait until the oldest item has waited its time, or a batch is full. Called with the lock held."""
        end = min((item.since for item in self._waiting), default=0.0) + self._wait_s
        while len(self._waiting) < self._max_batch_size and all(item.can_wait for item in self._waiting):
            left = end - time.perf_counter()
            if left <= 0 or not self._wakes.wait(left):
                return

    def _answer(self, batch: list[Item], cpus: int) -> None:
        wanted = [item for item in batch if item.is_wanted()]
        if not wanted:
            return
        if self._before is not None:
            self._before(cpus)
        started = time.perf_counter()
        answers = self._call(wanted)
        ran = time.perf_counter() - started
        calls = [Call(started - item.since, ran, len(wanted)) for item in wanted]
        if self._watch is not None:
            self._watch(wanted[0].kind, calls)
        for item, answer, call in zip(wanted, answers, calls, strict=True):
            item.done(answer, call)

    def _call(self, batch: Sequence[Item]) -> Sequence[Any]:
        try:
            return self._calls[batch[0].kind]([item.payload for item in batch])
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # One item that cannot be answered must not fail those that happen to share its call.
            _LOG.exception("A call of %s with %d items failed; each is tried alone.", batch[0].kind, len(batch))
            return [answer for item in batch for answer in self._call([item])]
