"""What grows with the number of trials, reports, nodes, pictures and requests, and how?

    python -m benchmarks.scaling                                              # everything; a quarter of an hour
    python -m benchmarks.scaling --parts trials --trials 20 200               # one part, small
    python -m benchmarks.scaling --output docs/records/scaling                # a record a part
    python -m benchmarks.scaling_model                                        # then: the page and its figures

- trials: the runner with trials that report one number once, as in `benchmarks.sweep_overhead`.
- reports: the same with trials that report several times, each time with a small checkpoint.
- nodes: a sweep of trivial trials on simulated nodes with a CPU each, all on this machine; and how long an object takes
  to be on every node.
- pictures: listing a folder and cutting it into shards, as a batch job begins, and comparing it, as a resumed one does.
  The pictures are empty files: only their names and sizes are read.
- storage: what a batch job asks of an S3 server, counted: three jobs, of which one has more shards than the first, and
  one more pictures than the second.
- requests: light requests to the service (`/healthz`, `/v1/models`), many at once.

All in one process after the other on one machine: the figures are costs, not what a cluster would reach.
"""

import asyncio
import io
import json
import logging
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import aiohttp
import numpy as np
import ray
import tyro
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from benchmarks.batch import start_job, wait_well, write_scenes
from benchmarks.node_deaths import cluster_of_nodes
from benchmarks.object_store import BUCKET, object_store
from benchmarks.ports import free_port
from benchmarks.record import Verdict, at_most, conclude, spread
from nodes import command
from sweeps import run_folder, runner
from sweeps.flags import Flags
from sweeps.question import Sweep
from sweeps.space import Choice
from sweeps.trial import HISTORY_FILE, TrialSettings

Part = Literal["trials", "reports", "nodes", "pictures", "storage", "requests"]
Row = dict[str, float]

_FEW, _MANY = 200, 2000
_TARGET_GROWTH = 1.5
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    parts: tuple[Part, ...] = ("trials", "reports", "nodes", "pictures", "storage", "requests")
    """What to measure."""
    trials: tuple[int, ...] = (20, 200, 1000, 2000)
    """Numbers of trivial trials."""
    reports: tuple[int, ...] = (1, 8)
    """Reports of each of 100 trials."""
    nodes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated nodes."""
    pictures: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of files in the listing."""
    storage: tuple[tuple[int, int], ...] = ((24, 8), (24, 4), (48, 8))
    """Pictures, and pictures a shard, of the jobs on S3."""
    requests: tuple[int, ...] = (1, 10, 100, 1000)
    """Numbers of requests at once."""
    output: Path | None = None
    """Write a JSON record of each part into this folder."""


def reporting_trial(point: dict[str, Any], data: object, settings: TrialSettings) -> None:
    """Stands in for `sweeps.trial.run_trial`: reports as often as `depth` says, with a checkpoint if more than once."""
    reports, history = int(point["depth"]), []
    for number in range(1, reports + 1):
        metrics = {"val_accuracy": -float(point["learning_rate"]), "epoch": number, "progress": number / reports}
        history.append(metrics)
        if reports == 1:
            tune.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / HISTORY_FILE).write_text(json.dumps(history))
            (Path(folder) / "weights").write_bytes(bytes(100_000))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def sweep_of(num_trials: int, num_reports: int, folder: Path, address: str = "local") -> Row:
    """Cost of the runner's first stage, from its `Tuner` to its last frame."""
    sweep = Sweep(
        name="scaling",
        question="What does a trial cost?",
        description="",
        factor="patch_size",
        # One level, so that one plan is made. Nothing is trained: the rates need not be sensible, and `depth` tells
        # the trial how often to report.
        grid={
            "patch_size": Choice((8,)),
            "learning_rate": Choice(tuple(range(1, num_trials + 1))),
            "depth": Choice((num_reports,)),
        },
        answer=lambda levels: "",
        budget=1e9,
        seeds=1,
    )
    flags = Flags(dataset="shapes", address=address, storage=str(folder), gpus_per_trial=0, smoke=True)
    unseen = mock.patch.object(command, "OUT", Console(file=io.StringIO()))
    with unseen, mock.patch.object(runner, "run_trial", reporting_trial):
        run = runner.Runner(sweep, run_folder.start(sweep, flags))
        try:
            stored = ray.put(run.data)
            wall, cpu = time.perf_counter(), time.process_time()
            records = run.stage(runner.SEARCH_STAGE, run.resolved.points, stored)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        finally:
            ray.shutdown()
    if len(records) != num_trials or any(record.error for record in records):
        raise RuntimeError(f"{len(records)} of {num_trials} trials ended: {[r.error for r in records if r.error][:1]}")
    files = [file for file in folder.rglob("*") if file.is_file()]
    snapshots = [file.stat().st_size for file in files if file.name.startswith("experiment_state-")]
    return {
        "trials": num_trials,
        "reports": num_reports,
        "seconds": wall,
        "driver_cpu_seconds": cpu,
        "snapshot_bytes": max(snapshots),
        "files": len(files),
    }


def measure_trials(settings: Settings, scratch: Path) -> tuple[list[Row], list[Verdict]]:
    rows = []
    for count in settings.trials:
        rows.append(sweep_of(count, 1, scratch / f"trials-{count}"))
        say(f"{count} trials", rows[-1])
    by_count = {row["trials"]: row for row in rows}
    if not {_FEW, _MANY} <= set(by_count):
        return rows, []

    def growth(cost: str) -> float:
        return by_count[_MANY][cost] / _MANY / (by_count[_FEW][cost] / _FEW)

    return rows, [
        at_most(
            claim=f"{name} of a trial at {_MANY:,} trials over that at {_FEW}",
            measured=growth(cost),
            target=_TARGET_GROWTH,
            unit="x",
        )
        for name, cost in (("seconds", "seconds"), ("driver CPU seconds", "driver_cpu_seconds"))
    ]


def measure_reports(settings: Settings, scratch: Path) -> tuple[list[Row], list[Verdict]]:
    rows = []
    for count in settings.reports:
        rows.append(sweep_of(100, count, scratch / f"reports-{count}"))
        say(f"100 trials of {count} reports", rows[-1])
    return rows, []


def measure_nodes(settings: Settings, scratch: Path) -> tuple[list[Row], list[Verdict]]:
    # Nodes inherit it, for `reporting_trial`; the project's own packages come with the job.
    os.environ["PYTHONPATH"] = str(_ROOT)
    rows = []
    for count in settings.nodes:
        started = time.perf_counter()
        with cluster_of_nodes(count) as cluster:
            up = time.perf_counter() - started
            spread_s = seconds_to_all_nodes(str(cluster.address))
            row = sweep_of(50, 1, scratch / f"nodes-{count}", str(cluster.address))
        rows.append({"nodes": count, "up_seconds": up, "object_to_all_nodes_seconds": spread_s, **row})
        say(f"{count} nodes", rows[-1])
    return rows, []


def seconds_to_all_nodes(address: str, megabytes: int = 20) -> float:
    """Until every worker node has read an object that the driver has put."""
    ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

        @ray.remote(num_cpus=0)
        def length(pixels: np.ndarray) -> int:
            return len(pixels)

        def ask(pixels: Any) -> list[int]:
            return ray.get(
                [
                    length.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(pixels)
                    for node in nodes
                ]
            )

        ask(ray.put(np.zeros(1, np.uint8)))  # the workers start
        stored = ray.put(np.zeros(megabytes * 10**6, np.uint8))
        started = time.perf_counter()
        ask(stored)
        return time.perf_counter() - started
    finally:
        ray.shutdown()


def measure_pictures(settings: Settings, scratch: Path) -> tuple[list[Row], list[Verdict]]:
    from serve.batch_input import find_input
    from serve.batch_job import open_job
    from serve.batch_storage import Store

    rows = []
    for count in settings.pictures:
        pictures = scratch / f"pictures-{count}"
        for number in range(count):
            folder = pictures / f"{number // 1000:05}"
            if number % 1000 == 0:
                folder.mkdir(parents=True)
            (folder / f"{number:08}.jpg").touch()
        source = find_input(str(pictures))
        row: Row = {"pictures": count}
        for what in ("begin", "resume"):
            wall, cpu = time.perf_counter(), time.process_time()
            job = open_job(Store.at(str(scratch / f"job-{count}")), {}, source, None)
            row[f"{what}_seconds"] = time.perf_counter() - wall
            row[f"{what}_cpu_seconds"] = time.process_time() - cpu
        row |= {"shards": job.num_shards, "listing_bytes": sum(f.stat().st_size for f in _files(scratch, count))}
        row["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append(row)
        say(f"{count} pictures", row)
    return rows, []


def _files(scratch: Path, count: int) -> list[Path]:
    return list((scratch / f"job-{count}" / "listing").iterdir())


def measure_storage(settings: Settings, scratch: Path) -> tuple[list[Row], list[Verdict]]:
    rows = []
    with object_store() as store:
        for number, (pictures, shard_size) in enumerate(settings.storage):
            folder = scratch / f"pictures-{number}"
            write_scenes(folder, pictures)
            store.upload(folder, f"in-{number}")
            store.requests.clear()
            output = f"s3://{BUCKET}/out-{number}"
            flags = (*("--shard-size", str(shard_size)), "--no-refine")
            wait_well(start_job(f"s3://{BUCKET}/in-{number}", ("star",), output, flags))
            reads = sum(store.requests[method] for method in ("GET", "HEAD"))
            row: Row = {
                "pictures": pictures,
                "shards": sum(name.startswith("results/") for name in store.names(f"out-{number}")),
                "reads": reads,
                "writes": store.requests.total() - reads,
            }
            rows.append(row)
            say(f"{pictures} pictures on S3", row)
    return rows, []


def measure_requests(settings: Settings, scratch: Path) -> tuple[list[Row], list[Verdict]]:
    from ray import serve

    from serve.app import build
    from serve.settings import Settings as ServiceSettings

    port = free_port()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    rows = []
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(ServiceSettings()), name="scaling")
        for at_once in settings.requests:
            for path in ("/healthz", "/v1/models"):
                row = asyncio.run(ask(f"http://127.0.0.1:{port}{path}", at_once, max(2 * at_once, 100)))
                rows.append({"path": path, **row})
                say(f"{at_once} requests at once to {path}", row)
    finally:
        serve.shutdown()
        ray.shutdown()
    failed = sum(row["failed"] for row in rows)
    verdict = at_most(
        claim="light requests not answered with 200",
        measured=failed,
        target=0,
        unit="",
    )
    return rows, [verdict]


async def ask(url: str, at_once: int, total: int) -> Row:
    """Latency and rate of `total` requests, from `at_once` clients that each ask again once they have an answer."""
    left = iter(range(total))
    seconds: list[float] = []
    statuses: list[int] = []

    async def client(http: aiohttp.ClientSession) -> None:
        for _ in left:
            started = time.perf_counter()
            try:
                async with http.get(url) as response:
                    await response.read()
                    statuses.append(response.status)
            except (aiohttp.ClientError, TimeoutError):
                statuses.append(0)
            seconds.append(time.perf_counter() - started)

    # Not httpx, whose pool looks through all connections for every request: with a thousand it would measure itself.
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(at_once)))
        elapsed = time.perf_counter() - started
    ordered = sorted(seconds)
    return {
        "at_once": at_once,
        "requests": total,
        "failed": sum(status != 200 for status in statuses),
        "refused": sum(status == 503 for status in statuses),
        "per_second": total / elapsed,
        "median_ms": 1000 * spread(seconds).median,
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
    }


def say(what: str, row: Row) -> None:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if not isinstance(value, str))
    print(f"{what}: {shown}", flush=True)


MEASURES: dict[Part, Callable[[Settings, Path], tuple[list[Row], Sequence[Verdict]]]] = {
    "trials": measure_trials,
    "reports": measure_reports,
    "nodes": measure_nodes,
    "pictures": measure_pictures,
    "storage": measure_storage,
    "requests": measure_requests,
}


def main(settings: Settings) -> None:
    """Measure the parts one after the other."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_memory_monitor_refresh_ms="0")
    for part in settings.parts:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            rows, verdicts = MEASURES[part](settings, Path(scratch))
        file = settings.output / f"{part}.json" if settings.output else None
        conclude("scaling", settings, {"part": part, "rows": rows}, verdicts, file)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
