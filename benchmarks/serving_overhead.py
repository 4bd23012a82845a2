"""What does the service add to the model it serves, and what of it is the way in?

    python -m benchmarks.serving_overhead --output docs/records/serving/overhead.json

The classifier that the project carries, one request at a time, 256x256 PNG uploads: the median answer's time less that
of the model alone in a process, which does nothing else. With each of the ways in that Ray Serve has, in turn within a
round, and without Serve:

- bare: the same application and the classifier in one process of uvicorn's: decoding, HTTP, and what is left for Serve
  to add to.
- proxy: Serve's own, in Python, as `serve run serve.config` starts it.
- haproxy: HAProxy, which comes with Ray, passes requests to the ingress replicas (`RAY_SERVE_ENABLE_HA_PROXY=1`).
- optimised: that, and Serve's settings for throughput (`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`): replicas speak gRPC.
"""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks import contenders
from benchmarks.contenders import Question
from benchmarks.load import closed_loop, percentile, steady
from benchmarks.record import at_most, conclude, spread
from core.carried import CARRIED_CLASSIFIER
from core.image_classifier import ImageClassifier
from core.segment.options import SegmentOptions

_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
_WAYS = {"proxy": {}, "haproxy": _HAPROXY, "optimised": {**_HAPROXY, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}}
_TARGET_MS = 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    rounds: int = 3
    """How often all ways in take their turn."""
    requests: int = 200
    """Requests a turn, after a quarter as many that do not count."""
    output: Path | None = None
    """Write a JSON record here."""


def answer_seconds(url: str, asked: Sequence[Question]) -> list[float]:
    """What answers of the classifier take, one at a time."""
    return steady(closed_loop(f"{url}/v1/classify", [question.classify() for question in asked], 1), 1)[1]


def model_seconds(calls: int) -> list[float]:
    """What the model alone takes for one picture, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_model_seconds, (calls,))


def _model_seconds(calls: int) -> list[float]:
    classifier = ImageClassifier.from_folder(CARRIED_CLASSIFIER, "cpu")
    picture = np.zeros((classifier.image_size, classifier.image_size, 3), np.uint8)
    seconds = []
    for _ in range(calls + 10):
        started = time.perf_counter()
        classifier.scores([picture])
        seconds.append(time.perf_counter() - started)
    return seconds[10:]


def measure(way: str, url: str, asked: Sequence[Question], model_ms: float) -> dict[str, float]:
    """Milliseconds of the answers, and of the median one over the model's."""
    answer_seconds(url, asked[: len(asked) // 4])
    seconds = answer_seconds(url, asked)
    p50, p95 = (1000 * percentile(seconds, share) for share in (50, 95))
    print(f"  {way:10} {p50 - model_ms:6.1f} ms over it; 95% of answers within {p95:.1f} ms", flush=True)
    return {"overhead_ms": p50 - model_ms, "p50": p50, "p95": p95}


def main(settings: Settings) -> None:
    """Run all rounds, print the verdicts."""
    asked = contenders.questions(0, settings.requests, 256, SegmentOptions())
    rounds = []
    for number in range(settings.rounds):
        model = 1000 * statistics.median(model_seconds(settings.requests))
        print(f"round {number + 1}: the model alone {model:.1f} ms", flush=True)
        figures: dict[str, dict[str, float]] = {}
        for way, environment in _WAYS.items():
            with contenders.patchwork({}, environment) as (url, _):
                figures[way] = measure(way, url, asked, model)
        with contenders.bare() as url:
            figures["bare"] = measure("bare", url, asked, model)
        rounds.append({"model_ms": model, **figures})
    overheads = {way: spread([one[way]["overhead_ms"] for one in rounds]) for way in (*_WAYS, "bare")}
    shares = {
        way: spread([one[way]["overhead_ms"] / one["proxy"]["overhead_ms"] for one in rounds])
        for way in _WAYS
        if way != "proxy"
    }
    print(f"\nover the model, median (minimum to maximum) of {settings.rounds} rounds:")
    for way, overhead in overheads.items():
        print(f"  {way:10} {overhead.text('.1f')} ms")
    for way, share in shares.items():
        print(f"  {way:10} {share.text()} of the proxy's")
    verdicts = [
        at_most(
            claim=f"{way}: the classifier's route over its model",
            measured=overheads[way].median,
            target=_TARGET_MS,
            unit="ms",
        )
        for way in _WAYS
    ]
    record = {
        "rounds": rounds,
        "overhead_ms": {way: asdict(one) for way, one in overheads.items()},
        "share_of_proxy": {way: asdict(one) for way, one in shares.items()},
    }
    conclude("serving_overhead", settings, record, verdicts, settings.output)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
