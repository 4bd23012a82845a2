"""How fast is the service, against others with the same models?

    python -m benchmarks.serving
    python -m benchmarks.serving --output docs/records/serving/speed.json
    python -m benchmarks.serving --rounds 1 --requests 32 --concurrencies 1 8      # a first look
    python -m benchmarks.serving --models full-size --warm-up 4 --requests 40 --concurrencies 8 --rounds 1

Generated scenes as PNG uploads with three prompts each, no scene sent twice. `demo` models, or models of the public
checkpoints' size with random weights, of whose heatmaps one object a prompt is outlined, without closer looks.
Contenders take turns within a round, each alone on the machine and warmed up:

- plain: FastAPI and uvicorn, which call the documented use of both libraries, prompt by prompt (`plain_app.py`);
- litserve: our pipeline behind LitServe, with its batching on (`litserve_app.py`);
- patchwork: this service, as `serve run serve.config` starts it on a Ray of its own;
- in process: our pipeline in batches, without a service: from PNG files to run lengths. The ceiling.

The load comes from one more process, in a closed loop: so many requests are always on their way. Ratios are those of
one round, and their median is judged.
"""

import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import contenders
from benchmarks.contenders import Question
from benchmarks.full_size import FULL_SIZE, FullSize, chosen
from benchmarks.load import PATIENCE_S, closed_loop, percentile, steady
from benchmarks.record import Verdict, conclude, spread
from core.segment.options import SegmentOptions

_BATCH = 16
CEILING = "in process"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    rounds: int = 3
    """How often all contenders take their turn."""
    concurrencies: tuple[int, ...] = (1, 8, 32)
    """How many requests are on their way at a time."""
    requests: int = 192
    """Requests at each concurrency, but at least five times as many as are on their way."""
    warm_up: int = 32
    """Requests to every contender before its turn."""
    models: Literal["demo", "full-size"] = "demo"
    """Those that the project carries, or public configurations with random weights."""
    side: int = 256
    """Width and height of the pictures."""
    service: tuple[str, ...] = ()
    """Settings of the service, as name=value."""
    output: Path | None = None
    """Write a JSON record here, and a figure beside it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one contender did in one round at one concurrency. Milliseconds; `load_cpu` is of one core."""

    contender: str
    concurrency: int
    per_second: float
    p50: float
    p95: float
    p99: float
    load_cpu: float

    def line(self) -> str:
        return (
            f"  {self.contender:12}{self.concurrency:4} at a time {self.per_second:8.2f}/s   p50 {self.p50:7.0f}"
            f"   p95 {self.p95:7.0f}   p99 {self.p99:7.0f} ms   load {self.load_cpu:4.0%} of a core"
        )


class Scenes:
    """Deals out scenes that nobody has seen before."""

    def __init__(self, side: int, options: SegmentOptions) -> None:
        self._side, self._options, self._dealt = side, options, 0

    def deal(self, number: int) -> list[Question]:
        self._dealt += number
        return contenders.questions(self._dealt - number, number, self._side, self._options)


def measure(name: str, url: str, concurrency: int, asked: Sequence[Question]) -> Row:
    """One closed loop of segmentation requests."""
    load = closed_loop(f"{url}/v1/segment", [question.segment() for question in asked], concurrency)
    per_second, seconds = steady(load, concurrency)
    p50, p95, p99 = (1000 * percentile(seconds, share) for share in (50, 95, 99))
    return Row(
        contender=name,
        concurrency=concurrency,
        per_second=per_second,
        p50=p50,
        p95=p95,
        p99=p99,
        load_cpu=load.cpu_share,
    )


def ceiling(warm_up: Sequence[Question], asked: Sequence[Question]) -> dict[str, float]:
    """Pictures a second of the batched pipeline in a process of its own: all of it, and `segment` alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_ceiling, (warm_up, asked))


def _ceiling(warm_up: Sequence[Question], asked: Sequence[Question]) -> dict[str, float]:
    segmenter, _ = chosen()
    _segment_all(segmenter, warm_up)
    started = time.perf_counter()
    in_segment = _segment_all(segmenter, asked)
    elapsed = time.perf_counter() - started
    return {"whole": len(asked) / elapsed, "segment alone": len(asked) / in_segment}


def _segment_all(segmenter: Any, asked: Sequence[Question]) -> float:
    """From files to run lengths; the seconds that `Segmenter.segment` took of it."""
    seconds = 0.0
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        images = [np.array(Image.open(io.BytesIO(question.png)).convert("RGB")) for question in part]
        started = time.perf_counter()
        answers = segmenter.segment(images, [question.prompts for question in part], part[0].options)
        seconds += time.perf_counter() - started
        for results in answers:
            for result in results:
                for instance in result.instances:
                    instance.cropped.rle()
    return seconds


@contextmanager
def _models(settings: Settings) -> Iterator[tuple[dict[str, str], SegmentOptions]]:
    """What the service is told of the models, and what is asked of them; the others read the environment."""
    if settings.models == "demo":
        yield {}, SegmentOptions()
        return
    with tempfile.TemporaryDirectory() as folder:
        full_size = FullSize(Path(folder)).save()
        os.environ[FULL_SIZE] = folder
        try:
            # The others answer however late it is.
            yield {**full_size.settings(), "request_timeout_s": str(PATIENCE_S)}, full_size.options
        finally:
            del os.environ[FULL_SIZE]


def run_round(settings: Settings, scenes: Scenes, models: Mapping[str, str]) -> tuple[list[Row], dict[str, float]]:
    """Every contender's rows, and the single figures of the round."""
    # The same questions for all; each concurrency has its own.
    counts = {one: max(settings.requests, 5 * one) for one in settings.concurrencies}
    warm_up, asked = scenes.deal(settings.warm_up), {one: scenes.deal(count) for one, count in counts.items()}
    words = {**models, **contenders.parse_settings(settings.service)}
    rows: list[Row] = []
    figures: dict[str, float] = {}

    def take_turn(name: str, url: str) -> None:
        closed_loop(f"{url}/v1/segment", [question.segment() for question in warm_up], _BATCH)
        for concurrency, part in asked.items():
            rows.append(measure(name, url, concurrency, part))
            print(rows[-1].line(), flush=True)

    others: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "plain": contenders.plain,
        "litserve": lambda: contenders.litserve(_BATCH),
    }
    for name, started in others.items():
        with started() as url:
            take_turn(name, url)
    with contenders.patchwork(words) as (url, _):
        take_turn("patchwork", url)
    for name, per_second in ceiling(warm_up, asked[settings.concurrencies[-1]]).items():
        figures[f"{CEILING}, {name}"] = per_second
        print(f"  {CEILING}, {name}: {per_second:.2f}/s", flush=True)
    return rows, figures


def draw(rows: Sequence[Row], limit: float, file: Path) -> None:
    """Throughput and the 95th percentile against concurrency; medians, and bars from minimum to maximum."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = sorted({row.concurrency for row in rows})
    for axes, attribute, title in (
        (left, "per_second", "answers a second"),
        (right, "p95", "95% of answers within, ms"),
    ):
        for name in dict.fromkeys(row.contender for row in rows):
            mine = [row for row in rows if row.contender == name]
            spreads = [spread([getattr(row, attribute) for row in mine if row.concurrency == step]) for step in steps]
            middles = [one.median for one in spreads]
            bars = [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]
            axes.errorbar(steps, middles, yerr=bars, marker="o", capsize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel="requests on their way", title=title)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
    left.axhline(limit, linestyle="--", color="grey", label=CEILING)
    left.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    print(f"figure: {file}")


def main(settings: Settings) -> None:
    """Run all rounds, print the table and the verdicts."""
    rounds = []
    with _models(settings) as (models, options):
        scenes = Scenes(settings.side, options)
        for number in range(settings.rounds):
            print(f"round {number + 1}", flush=True)
            rounds.append(run_round(settings, scenes, models))
    most = settings.concurrencies[-1]
    speeds = [{row.contender: row.per_second for row in rows if row.concurrency == most} for rows, _ in rounds]
    limits = [figures[f"{CEILING}, whole"] for _, figures in rounds]
    ratios = {
        "plain": spread([speed["patchwork"] / speed["plain"] for speed in speeds]),
        "litserve": spread([speed["patchwork"] / speed["litserve"] for speed in speeds]),
        CEILING: spread([speed["patchwork"] / limit for speed, limit in zip(speeds, limits, strict=True)]),
    }
    print(f"\nthroughput at {most}, over that of others, median (minimum to maximum) of {settings.rounds} rounds:")
    for name, ratio in ratios.items():
        print(f"  {name:12} {ratio.text()}")
    targets = {"plain": 3.0, "litserve": 1.2, CEILING: 0.85}
    verdicts = [
        Verdict(claim=f"throughput at {most} over {name}", measured=ratios[name].median, target=target, unit="x")
        for name, target in targets.items()
    ]
    if settings.output is not None:
        rows = [row for part, _ in rounds for row in part]
        draw(rows, statistics.median(limits), settings.output.with_suffix(".png"))
    figures = {
        "rounds": [{"rows": [asdict(row) for row in rows], **figures} for rows, figures in rounds],
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
    }
    conclude("serving", settings, figures, verdicts, settings.output)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
