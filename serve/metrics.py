"""Counters and histograms, through Ray's own: Prometheus reads them at each node's metrics port, prefixed `ray_`."""

from collections.abc import Sequence

from ray.serve import metrics

from serve.batcher import Call

_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]


class StageMetrics:
    """Of the calls of a model; `stage` is `clipseg`, `sam2` or `classifier`."""

    def __init__(self) -> None:
        self._seconds = metrics.Histogram(
            "patchwork_stage_seconds", "Duration of a model call.", boundaries=_SECONDS, tag_keys=("stage",)
        )
        self._waited = metrics.Histogram(
            "patchwork_stage_queue_seconds", "How long an item waited.", boundaries=_SECONDS, tag_keys=("stage",)
        )
        self._batch = metrics.Histogram(
            "patchwork_stage_batch_size",
            "Items that shared a call.",
            boundaries=[1, 2, 4, 8, 16, 32, 64, 128],
            tag_keys=("stage",),
        )

    def called(self, stage: str, calls: Sequence[Call]) -> None:
        tags = {"stage": stage}
        self._seconds.observe(calls[0].ran_s, tags)
        self._batch.observe(len(calls), tags)
        self._waited.observe(max(max(call.waited_s for call in calls), 1e-6), tags)


class CacheMetrics:
    """Of the encoded pictures of a replica, closer looks included. A `FeatureCache` calls it."""

    def __init__(self) -> None:
        self._lookups = metrics.Counter(
            "patchwork_cache_lookups", "Look-ups of encoded pictures.", tag_keys=("outcome",)
        )
        self._bytes = metrics.Gauge("patchwork_cache_bytes", "Memory of the encoded pictures.")

    def __call__(self, hit: bool, nbytes: int) -> None:
        self._lookups.inc(1, {"outcome": "hit" if hit else "miss"})
        self._bytes.set(nbytes)


class RequestMetrics:
    """Of the requests, as clients see them."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "patchwork_requests",
            "Requests by route and outcome.",
            ("path", "outcome"),  # pyright: ignore[reportArgumentType]
        )
        self._seconds = metrics.Histogram(
            "patchwork_request_seconds", "Time to the answer.", boundaries=_SECONDS, tag_keys=("path",)
        )
        self._in_hand = metrics.Gauge("patchwork_requests_in_hand", "Requests let in and not yet answered.", ("path",))

    def answered(self, path: str, outcome: str, seconds: float) -> None:
        self._requests.inc(1, {"path": path, "outcome": outcome})
        self._seconds.observe(seconds, {"path": path})

    def in_hand(self, path: str, num_requests: int) -> None:
        self._in_hand.set(num_requests, {"path": path})
