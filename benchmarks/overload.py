"""What happens to the service under too much, for long, and when a replica dies?

    python -m benchmarks.overload overload --output docs/records/serving/overload.json
    python -m benchmarks.overload soak --minutes 20 --output docs/records/serving/soak.json
    python -m benchmarks.overload kill --output docs/records/serving/kill.json

`serve run serve.config` on a Ray of its own, `demo` models, generated scenes with three prompts each, the load from one
more process. The cache of encoded pictures is set small enough to be full from the start and of no use: what is sent
again has been forgotten by then.

- overload: the rate that is sustained with 32 requests on their way; then five times that rate, however slow the
  answers are. Counted are what was answered, what was refused and how fast, the peak of memory during both, and how
  soon all was as before.
- soak: a steady load for so many minutes. Counted are errors and the growth of memory.
- kill: a steady load during which a replica's process is killed. Counted are the answers lost, and the seconds until
  the next one.

Memory is that of all processes of the service, Ray's among them, each shared page counted once.
"""

import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import tyro

from benchmarks import contenders
from benchmarks.load import Body, Sent, closed_loop, open_loop, percentile, steady, timed_loop
from benchmarks.process_memory import family, usage_of
from benchmarks.record import Verdict, at_most, conclude
from core.segment.options import SegmentOptions

_REFUSED = httpx.codes.SERVICE_UNAVAILABLE
_FULL = 32
_BODIES = 256
_CACHE_MB = 8
# Answers count as usual again within so many times their usual time.
_USUAL = 2.0
_GROWTH_PERCENT = 5.0
_SECONDS_BETWEEN_SAMPLES = 2.0


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of all three."""

    side: int = 256
    """Width and height of the pictures."""
    service: tuple[str, ...] = ()
    """Settings of the service, as name=value."""
    output: Path | None = None
    """Write a JSON record here."""


@dataclass(frozen=True, kw_only=True)
class Overload(Common):
    """Five times what can be sustained."""

    times: float = 5
    """The rate, as a multiple of the sustainable one."""
    seconds: float = 60
    """How long it lasts."""
    requests: int = 256
    """With how many the sustainable rate is measured."""


@dataclass(frozen=True, kw_only=True)
class Soak(Common):
    """A steady load for long."""

    minutes: float = 20
    """How long, after a minute of warm-up."""
    concurrency: int = 8
    """Requests on their way."""


@dataclass(frozen=True, kw_only=True)
class Kill(Common):
    """A replica is killed under a steady load."""

    deployment: str = "Segmenter"
    """One replica of which is killed."""
    seconds: float = 90
    """How long the load lasts; the replica is killed after a third of it."""
    concurrency: int = 8
    """Requests on their way."""


@contextmanager
def service(settings: Common) -> Iterator[tuple[str, int, list[Body]]]:
    """The address of the segment route, the service's process, and bodies to send; warmed up."""
    bodies = [question.segment() for question in contenders.questions(0, _BODIES, settings.side, SegmentOptions())]
    words = {"cache_mb": str(_CACHE_MB), **contenders.parse_settings(settings.service)}
    with contenders.patchwork(words) as (url, pid):
        route = f"{url}/v1/segment"
        closed_loop(route, bodies[:64], 16)
        yield route, pid, bodies


def megabytes(pid: int) -> dict[str, float]:
    """What the processes of the service hold, by command."""
    held: Counter[str] = Counter()
    for one, command in family(pid).items():
        with suppress(OSError):  # it has ended meanwhile
            name = command.split(" ")[0].rpartition("/")[2]
            if name.startswith("ray::"):
                name = name.split(".")[0]  # without the method that runs just now
            held[name] += usage_of(one).pss  # type: ignore[assignment]
    return dict(held)


@contextmanager
def watched(pid: int, every_s: float) -> Iterator[list[dict[str, float]]]:
    """What `megabytes` says, again and again while the block runs."""
    samples: list[dict[str, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            samples.append(megabytes(pid))
            over.wait(every_s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        over.set()
        watcher.join()


def _largest(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    return max(samples, key=lambda held: sum(held.values()))


def overload(settings: Overload) -> None:
    """Measure the sustainable rate, exceed it, see what remains."""
    with service(settings) as (route, pid, bodies):
        with watched(pid, _SECONDS_BETWEEN_SAMPLES) as samples:
            sustained, usual = steady(closed_loop(route, (bodies * 9)[: settings.requests], _FULL), _FULL)
        before = _largest(samples)
        alone = percentile(steady(closed_loop(route, bodies[:32], 1), 1)[1], 95)
        print(f"sustained: {sustained:.1f}/s, 95% of answers within {percentile(usual, 95):.2f} s, alone {alone:.2f} s")
        with watched(pid, _SECONDS_BETWEEN_SAMPLES) as samples:
            load = open_loop(route, bodies, settings.times * sustained, settings.seconds)
        during = _largest(samples)
        # All answers are there by now: the rest of the recovery is that of a lone request.
        drained = max(one.ended for one in load.sent) - max(one.began for one in load.sent)
        recovered = drained + _seconds_until_usual(route, bodies[0], _USUAL * alone)
    by_status = Counter(one.status for one in load.sent)
    answered = [one for one in load.sent if one.status == httpx.codes.OK]
    refused = [one for one in load.sent if one.status == _REFUSED]
    others = len(load.sent) - len(answered) - len(refused)
    rate = len(answered) / max(one.ended for one in load.sent)
    growth = _growth(sum(before.values()), sum(during.values()))
    refusals = _percentiles(refused)
    print(
        f"sent {len(load.sent)} at {settings.times:g} times that rate: {len(answered)} answered ({rate:.1f}/s), "
        f"{len(refused)} refused ({len(refused) / len(load.sent):.0%}); by status {dict(by_status)}\n"
        f"refusals, ms: {refusals}; answers, ms: {_percentiles(answered)}\n"
        f"as before after {recovered:.1f} s; the load took {load.cpu_share:.0%} of a core\n"
        f"memory at most {sum(before.values()):.0f} MB, then {sum(during.values()):.0f} MB"
    )
    verdicts = [
        at_most("95% of refusals within", refusals.get("p95", 0.0), 250, "ms"),
        at_most("refusals without Retry-After", sum(not one.has_retry_after for one in refused), 0, "requests"),
        at_most("neither answered nor refused with 503", others, 0, "requests"),
        Verdict(claim="answered, of the sustainable rate", measured=100 * rate / sustained, target=80, unit="%"),
        at_most("peak of memory above that of the sustained rate", growth, _GROWTH_PERCENT, "%"),
        at_most("as before after", recovered, 5, "s"),
    ]
    figures = {
        "sustained_per_second": sustained,
        "sustained_ms": {f"p{share}": 1000 * percentile(usual, share) for share in (50, 95, 99)},
        "sent": len(load.sent),
        "by_status": dict(by_status),
        "refused_share": len(refused) / len(load.sent),
        "refusals_ms": refusals,
        "answers_ms": _percentiles(answered),
        "recovered_s": recovered,
        "megabytes": {"sustained": before, "overload": during},
        "load_cpu_share": load.cpu_share,
    }
    conclude("overload", settings, figures, verdicts, settings.output)


def soak(settings: Soak) -> None:
    """Send for long, and watch the memory."""
    with service(settings) as (route, pid, bodies):
        timed_loop(route, bodies, settings.concurrency, 60)
        every_s = max(1.0, settings.minutes)
        with watched(pid, every_s) as samples:
            load = timed_loop(route, bodies, settings.concurrency, 60 * settings.minutes)
    totals = [sum(held.values()) for held in samples]
    # Single samples may fall on a request's own memory.
    tenth = max(1, len(totals) // 10)
    first, last = statistics.median(totals[:tenth]), statistics.median(totals[-tenth:])
    by_status = Counter(one.status for one in load.sent)
    errors = sum(count for status, count in by_status.items() if status not in (httpx.codes.OK, _REFUSED))
    print(
        f"{len(load.sent)} requests in {settings.minutes:g} minutes, by status {dict(by_status)}\n"
        f"answers, ms: {_percentiles(load.sent)}\nmemory {first:.0f} MB, then {last:.0f} MB"
    )
    for command, held in samples[-1].items():
        print(f"  {command:40} {samples[0].get(command, 0.0):7.0f} MB, then {held:7.0f} MB")
    verdicts = [
        at_most("errors other than 503", errors, 0, "requests"),
        at_most("memory grew by", _growth(first, last), _GROWTH_PERCENT, "%"),
    ]
    figures = {
        "by_status": dict(by_status),
        "answers_ms": _percentiles(load.sent),
        "seconds_between_samples": every_s,
        "samples": samples,
    }
    conclude("overload", settings, figures, verdicts, settings.output)


def kill(settings: Kill) -> None:
    """Kill a replica in the middle of a load."""
    killed: list[float] = []
    with service(settings) as (route, pid, bodies):
        victim = _replica(pid, settings.deployment)

        def strike() -> None:
            killed.append(time.time())
            os.kill(victim, signal.SIGKILL)

        timer = threading.Timer(settings.seconds / 3, strike)
        timer.start()
        try:
            load = timed_loop(route, bodies, settings.concurrency, settings.seconds)
        finally:
            timer.cancel()
    moment = killed[0] - load.started
    in_its_hands = [one for one in load.sent if one.began < moment < one.ended]
    later = [one for one in load.sent if one.began >= moment]
    back = min((one.ended for one in later if one.status == httpx.codes.OK), default=float("inf")) - moment
    wrong_later = sum(one.status not in (httpx.codes.OK, _REFUSED) for one in later)
    lost = sum(one.status != httpx.codes.OK for one in in_its_hands)
    seen = Counter(one.status for one in (*in_its_hands, *later) if one.ended - moment <= back)
    print(
        f"killed after {moment:.1f} s, {len(in_its_hands)} requests being on their way: {lost} of them lost, with "
        f"{dict(Counter(one.status for one in in_its_hands))}\nuntil the next answer clients saw {dict(seen)}; "
        f"it came {back:.1f} s after the kill; later, by status: {dict(Counter(one.status for one in later))}"
    )
    verdicts = [
        at_most("answers again after", back, 30, "s"),
        at_most("lost, of those on their way", lost, settings.concurrency, "requests"),
        at_most("later answers that were neither 200 nor 503", wrong_later, 0, "requests"),
    ]
    figures = {
        "killed_after_s": moment,
        "on_their_way": dict(Counter(one.status for one in in_its_hands)),
        "until_back": dict(seen),
        "later": dict(Counter(one.status for one in later)),
        "back_s": back,
        "before_ms": _percentiles([one for one in load.sent if one.ended <= moment]),
    }
    conclude("overload", settings, figures, verdicts, settings.output)


def _replica(pid: int, deployment: str) -> int:
    """A replica's process, by the name that Ray gives it, among the descendants of the service that we started."""
    replicas = {one: command for one, command in family(pid).items() if command.startswith("ray::ServeReplica")}
    for one, command in replicas.items():
        if command.split(".")[0].endswith(f":{deployment}"):
            return one
    raise SystemExit(f"there is no replica of {deployment}; there are: {', '.join(sorted(set(replicas.values())))}")


def _seconds_until_usual(route: str, body: Body, usual: float) -> float:
    started = time.perf_counter()
    with httpx.Client(timeout=60, trust_env=False) as client:
        while True:
            began = time.perf_counter()
            response = client.post(route, content=body.content, headers={"Content-Type": body.content_type})
            now = time.perf_counter()
            if (response.status_code == httpx.codes.OK and now - began <= usual) or now - started > 120:
                return now - started


def _percentiles(sent: Sequence[Sent]) -> dict[str, float]:
    """Milliseconds."""
    return {
        f"p{share}": round(1000 * percentile([one.seconds for one in sent], share), 1) for share in (50, 95, 99) if sent
    }


def _growth(first: float, last: float) -> float:
    return 100 * (last / first - 1)


def main(settings: Overload | Soak | Kill) -> None:
    """Run the one that was asked for."""
    if isinstance(settings, Overload):
        overload(settings)
    elif isinstance(settings, Soak):
        soak(settings)
    else:
        kill(settings)


if __name__ == "__main__":
    main(tyro.cli(Overload | Soak | Kill, description=__doc__))
