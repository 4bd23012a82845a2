"""Load from a process of its own: requests prepared beforehand, sent in a closed loop or at a fixed rate.

A closed loop has so many requests on their way at any time, and shows what a service can do; at a fixed rate requests
come however slow the answers are, as they do from strangers.
"""

import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

import aiohttp

# In the place of a status, where the connection broke.
BROKEN = 0
_TIMEOUT_S = 120.0
# A closed loop measures what a service can do, however slow it is: the plain app takes minutes an answer with models of
# the public size.
PATIENCE_S = 1800.0
# After a refusal, as a client would: or those that are refused at once would outnumber all others.
_PAUSE_S = 0.1
_UNLIMITED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A request's body, ready to be sent."""

    content: bytes
    content_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """One request: seconds from the start of the load until it was sent, and until its answer was there."""

    began: float
    ended: float
    status: int
    has_retry_after: bool = False

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, kw_only=True)
class Load:
    """What was sent, from `started` on, by the wall clock.

    cpu_share: of one core, used by the process that sent it; when it is high, the load measures itself.
    """

    sent: list[Sent]
    started: float
    cpu_share: float


def percentile(values: Sequence[float], share: int) -> float:
    """The value below which `share` per cent of them lie."""
    return values[0] if len(values) == 1 else statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def closed_loop(url: str, bodies: Sequence[Body], concurrency: int) -> Load:
    """Send all bodies, `concurrency` at a time."""
    return _in_a_process("closed", url, bodies, concurrency=concurrency)


def timed_loop(url: str, bodies: Sequence[Body], concurrency: int, seconds: float) -> Load:
    """A closed loop for so long, the bodies over and over."""
    return _in_a_process("timed", url, bodies, concurrency=concurrency, seconds=seconds)


def open_loop(url: str, bodies: Sequence[Body], rate: float, seconds: float) -> Load:
    """Send `rate` requests a second at random moments (Poisson), the bodies over and over."""
    return _in_a_process("open", url, bodies, rate=rate, seconds=seconds)


def steady(load: Load, concurrency: int) -> tuple[float, list[float]]:
    """Answers a second, and the seconds that each took, of the time in which a closed loop was full.

    Raises:
        RuntimeError: a request was not answered with 200.
        ValueError: the loop was hardly ever full.
    """
    if wrong := [one for one in load.sent if one.status != HTTPStatus.OK]:
        raise RuntimeError(f"{len(wrong)} of {len(load.sent)} requests failed, the first with {wrong[0].status}")
    full = sorted(one.ended for one in load.sent)[concurrency - 1]
    over = max(one.began for one in load.sent)
    inside = [one.seconds for one in load.sent if full < one.ended <= over]
    if len(inside) < len(load.sent) / 4:
        raise ValueError(f"{len(load.sent)} requests are too few for {concurrency} at a time")
    return len(inside) / (over - full), inside


def _in_a_process(loop: str, url: str, bodies: Sequence[Body], **arguments: float) -> Load:
    # This module run by itself, which imports little: the load must not take the machine that it measures.
    order = {
        "loop": loop,
        "url": url,
        "arguments": arguments,
        "content_type": bodies[0].content_type,
        "sizes": [len(body.content) for body in bodies],
    }
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=Path(__file__).resolve().parent.parent,
        input=b"".join([json.dumps(order).encode(), b"\n", *(body.content for body in bodies)]),
        stdout=subprocess.PIPE,
        check=True,
    )
    load = json.loads(run.stdout)
    return Load(**{**load, "sent": [Sent(**one) for one in load["sent"]]})


def main() -> None:
    """Read an order and the bodies, send them, write what became of them."""
    order = json.loads(sys.stdin.buffer.readline())
    bodies = [Body(content=sys.stdin.buffer.read(size), content_type=order["content_type"]) for size in order["sizes"]]
    send = {"closed": _closed_loop, "timed": _timed_loop, "open": _open_loop}[order["loop"]]
    json.dump(asdict(asyncio.run(send(order["url"], bodies, **order["arguments"]))), sys.stdout)


async def _closed_loop(url: str, bodies: Sequence[Body], concurrency: int) -> Load:
    left = iter(bodies)
    return await _loop(url, concurrency, PATIENCE_S, lambda _: next(left, None))


async def _timed_loop(url: str, bodies: Sequence[Body], concurrency: int, seconds: float) -> Load:
    endless = itertools.cycle(bodies)
    return await _loop(url, concurrency, _TIMEOUT_S, lambda now: next(endless) if now < seconds else None)


async def _loop(url: str, concurrency: int, timeout_s: float, next_body: Callable[[float], Body | None]) -> Load:
    sent: list[Sent] = []

    async def worker(sender: "_Sender") -> None:
        while body := next_body(sender.now()):
            one = await sender.send(body)
            sent.append(one)
            if one.status != HTTPStatus.OK:
                await asyncio.sleep(_PAUSE_S)

    async def workers(sender: "_Sender") -> None:
        await asyncio.gather(*(worker(sender) for _ in range(concurrency)))

    return await _measured(url, concurrency, timeout_s, sent, workers)


async def _open_loop(url: str, bodies: Sequence[Body], rate: float, seconds: float) -> Load:
    sent: list[Sent] = []
    rng = random.Random(0)

    async def one(sender: "_Sender", body: Body) -> None:
        sent.append(await sender.send(body))

    async def arrivals(sender: "_Sender") -> None:
        on_their_way: list[asyncio.Task[None]] = []
        due = rng.expovariate(rate)
        while due < seconds:
            await asyncio.sleep(max(0.0, due - sender.now()))
            body = bodies[len(on_their_way) % len(bodies)]
            on_their_way.append(asyncio.create_task(one(sender, body)))
            due += rng.expovariate(rate)
        await asyncio.gather(*on_their_way)

    return await _measured(url, _UNLIMITED, _TIMEOUT_S, sent, arrivals)


async def _measured(
    url: str, connections: int, timeout_s: float, sent: list[Sent], work: Callable[["_Sender"], Awaitable[None]]
) -> Load:
    # The lightest client there is: its own time counts as the service's.
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout_s)) as client:
        by_the_wall, cpu, started = time.time(), time.process_time(), time.perf_counter()
        await work(_Sender(client, url, started))
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
    return Load(sent=sorted(sent, key=lambda one: one.began), started=by_the_wall, cpu_share=share)


class _Sender:
    def __init__(self, client: aiohttp.ClientSession, url: str, started: float) -> None:
        self._client, self._url, self._started = client, url, started

    def now(self) -> float:
        return time.perf_counter() - self._started

    async def send(self, body: Body) -> Sent:
        began = self.now()
        try:
            async with self._client.post(
                self._url, data=body.content, headers={"Content-Type": body.content_type}
            ) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return Sent(began=began, ended=self.now(), status=BROKEN)
        return Sent(
            began=began,
            ended=self.now(),
            status=response.status,
            has_retry_after="Retry-After" in response.headers,
        )


if __name__ == "__main__":
    main()
