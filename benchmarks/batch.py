"""Is a batch job as fast as its models, and does its memory stay flat?

    python -m benchmarks.batch
    python -m benchmarks.batch --parts speed --rounds 5 --output docs/records/benchmarks/batch.json
    python -m benchmarks.batch --parts memory --memory-pictures 500 2000
    python -m benchmarks.batch --parts speed --models full-size --pictures 16 --prompts 3 --rounds 1
    python -m benchmarks.batch --parts speed --models full-size --pictures 33 --prompts 1 --against one_process

Generated scenes of 256x256 pixels as PNG files, and the demo weights; or for speed, models of the public checkpoints'
size with random weights, of whose heatmaps one object a prompt is outlined. Speed, over the same files and prompts:

- documented: CLIPSeg and SAM 2 as their documentation shows them, a picture and a prompt at a time, in a plain loop;
- one process: `Segmenter.segment` on batches of 16 pictures, with as many threads as the machine has cores;
- job: `python serve/batch.py`, which also writes its results. Its rate counts from the beginning of the first shard;
  what comes before it, once a job (Ray, processes, models), is printed beside it.

Rounds are interleaved; a ratio is that of one round, and the median is judged. The two loops keep nothing of what they
find. Memory is the sum of pss (a page that n processes map counts 1/n in each) over the job's processes, Ray's
own among them, every second; the peak is judged (Linux only: /proc/PID/smaps_rollup).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from PIL import Image

from benchmarks.full_size import FullSize
from benchmarks.process_memory import MEGABYTE, family, usage_of
from benchmarks.prototype import Prototype
from benchmarks.record import Verdict, at_most, conclude, spread
from core.images import decode
from core.segment.options import SegmentOptions
from core.segment.pipeline import Segmenter
from core.segment.scenes import generate_scene, render

# Shapes and colours that about half of the pictures show, and words for what none does.
PROMPTS = ("circle", "star", "red object", "blue object", "green ring", "small heart", "zebra", "diamond")
_FIRST_SEED = 20_000_000
_MAX_PIXELS = 40_000_000
_BATCH = 16
_BATCH_PROGRAM = Path(__file__).resolve().parent.parent / "serve" / "batch.py"
_SECONDS_BETWEEN_SAMPLES = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    parts: tuple[Literal["speed", "memory"], ...] = ("speed", "memory")
    """What to measure."""
    models: Literal["demo", "full-size"] = "demo"
    """Whose speed is measured: those that the project carries, or public configurations with random weights."""
    pictures: int = 256
    """Pictures of a round of the speed measurement."""
    rounds: int = 3
    """How often each of the three is timed."""
    against: tuple[Literal["documented", "one_process"], ...] = ("documented", "one_process")
    """What the job's speed is held against."""
    prompts: int = len(PROMPTS)
    """How many prompts every picture is asked for, from 1 to 8."""
    memory_pictures: tuple[int, int] = (2000, 8000)
    """Pictures of the two jobs whose memory is compared."""
    memory_prompts: int = 2
    """How many prompts each of their pictures is asked for."""
    output: Path | None = None
    """Write a JSON record here."""


def write_scenes(folder: Path, count: int, *, different: int = 1000) -> None:
    """PNG files; beyond `different` of them, links to those before under names of their own."""
    folder.mkdir()
    for number in range(count):
        file = folder / f"{number:06d}.png"
        if number < different:
            image, _ = render(generate_scene(_FIRST_SEED + number), 256)
            Image.fromarray(image).save(file)
        else:
            os.link(folder / f"{number % different:06d}.png", file)


def documented(prototype: Prototype, files: Sequence[Path], prompts: Sequence[str]) -> None:
    """The plain loop."""
    for file in files:
        image = decode(file.read_bytes(), max_pixels=_MAX_PIXELS)
        for prompt in prompts:
            prototype.segment(image, prompt)


def one_process(segmenter: Segmenter, files: Sequence[Path], prompts: Sequence[str], options: SegmentOptions) -> None:
    """The batched pipeline without Ray."""
    for start in range(0, len(files), _BATCH):
        images = [decode(file.read_bytes(), max_pixels=_MAX_PIXELS) for file in files[start : start + _BATCH]]
        segmenter.segment(images, [prompts] * len(images), options)


def start_job(
    pictures: Path | str, prompts: Sequence[str], output: Path | str, flags: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """`python serve/batch.py` with its defaults, but for these flags."""
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    command = [sys.executable, str(_BATCH_PROGRAM), str(pictures), *asked, *flags, "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def wait_well(process: subprocess.Popen[bytes]) -> None:
    """Until the job has ended; raises RuntimeError if it did not end well."""
    if process.wait() != 0:
        raise RuntimeError(f"the job ended with exit code {process.returncode}")


def figures_of(process: subprocess.Popen[bytes], output: Path) -> dict[str, Any]:
    """What the job noted about itself, once it has ended well."""
    wait_well(process)
    (run,) = json.loads((output / "batch.json").read_text())["runs"]
    return {name: run[name] for name in ("pictures", "seconds", "startup_s", "pictures_per_s", "workers")}


def rate(call: Callable[[], None], pictures: int) -> float:
    """Pictures a second."""
    start = time.perf_counter()
    call()
    return pictures / (time.perf_counter() - start)


def _models(settings: Settings, place: Path) -> tuple[Segmenter, SegmentOptions, list[str]]:
    """The pipeline, what it is asked, and the job's flags for the same."""
    if settings.models == "demo":
        return Segmenter.from_preset("demo"), SegmentOptions(), []
    full_size = FullSize(place / "models").save()
    words = {**full_size.settings(), "max_instances": str(full_size.options.max_instances)}
    flags = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
    return full_size.load(), full_size.options, flags


def measure_speed(settings: Settings, place: Path) -> tuple[dict[str, Any], list[Verdict]]:
    """The three rates, round by round."""
    prompts = PROMPTS[: settings.prompts]
    folder = place / "speed"
    write_scenes(folder, settings.pictures, different=settings.pictures)
    files = sorted(folder.iterdir())
    segmenter, options, flags = _models(settings, place)
    prototype = Prototype(segmenter)
    loops: dict[str, Callable[[Sequence[Path]], None]] = {
        "documented": lambda some: documented(prototype, some, prompts),
        "one_process": lambda some: one_process(segmenter, some, prompts, options),
    }
    loops = {name: loops[name] for name in settings.against}
    for loop in loops.values():
        loop(files[:2])
    print(f"{len(files)} pictures, {len(prompts)} prompts, {torch.get_num_threads()} threads; pictures a second\n")
    print(f"{'':8}{''.join(f'{name:>13}' for name in loops)}{'job':>8}{'start-up':>12}{'with all':>10}")
    rounds = []
    for turn in range(settings.rounds):
        rates = {name: rate(partial(loop, files), len(files)) for name, loop in loops.items()}
        output = place / f"job-{turn}"
        job = figures_of(start_job(folder, prompts, output, flags), output)
        whole = job["pictures"] / job["seconds"]
        rounds.append({**rates, **job})
        print(
            f"round {turn + 1:<2}{''.join(f'{one:13.3f}' for one in rates.values())}{job['pictures_per_s']:8.3f}"
            f"{job['startup_s']:10.1f} s{whole:10.3f}",
            flush=True,
        )
    figures: dict[str, Any] = {"rounds": rounds}
    verdicts = []
    if "documented" in loops:
        ratio = spread([one["pictures_per_s"] / one["documented"] for one in rounds])
        figures["over_documented"] = asdict(ratio)
        print(f"\njob over documented: {ratio.text()}")
        claim = "the job over a plain loop over the documented pipeline"
        verdicts.append(Verdict(claim=claim, measured=ratio.median, target=2, unit="times"))
    if "one_process" in loops:
        share = spread([100 * one["pictures_per_s"] / one["one_process"] for one in rounds])
        figures["share_of_one_process_percent"] = asdict(share)
        print(f"\njob over one process: {share.text('.0f')}%")
        claim = "the job's rate as a share of the pipeline's in one process"
        verdicts.append(Verdict(claim=claim, measured=share.median, target=90, unit="%"))
    return figures, verdicts


def measure_memory(settings: Settings, place: Path) -> tuple[dict[str, Any], list[Verdict]]:
    """The peaks of two jobs, one with more pictures than the other."""
    prompts = PROMPTS[: settings.memory_prompts]
    jobs = []
    print(f"\n{'pictures':>10}{'peak MB':>10}{'last tenth':>12}{'processes':>11}{'pictures/s':>12}")
    for count in settings.memory_pictures:
        folder, output = place / f"memory-{count}", place / f"memory-job-{count}"
        write_scenes(folder, count)
        process = start_job(folder, prompts, output)
        samples, processes = [], 0
        while process.poll() is None:
            total, alive = pss_below(os.getpid())
            samples.append(total)
            processes = max(processes, alive)
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        job = figures_of(process, output)
        late = max(samples[-max(1, len(samples) // 10) :])
        jobs.append({"pictures": count, "peak_mb": max(samples), "last_tenth_mb": late, "processes": processes, **job})
        print(f"{count:10,}{max(samples):10.0f}{late:12.0f}{processes:11}{job['pictures_per_s']:12.2f}", flush=True)
    few, many = jobs
    verdict = at_most(
        claim=f"peak memory with {many['pictures']:,} pictures as a share of that with {few['pictures']:,}",
        measured=100 * many["peak_mb"] / few["peak_mb"],
        target=110,
        unit="%",
    )
    return {"memory": jobs}, [verdict]


def pss_below(pid: int) -> tuple[float, int]:
    """MB held by all descendants of this process, and how many they are; without the process itself."""
    total, alive = 0.0, 0
    for child in family().keys() - {pid}:
        with suppress(OSError):  # it has ended since
            total += usage_of(child).pss
            alive += 1
    return total, alive


def main(settings: Settings) -> None:
    """Measure, print, judge."""
    figures: dict[str, Any] = {"prompts": PROMPTS, "megabyte": MEGABYTE}
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="patchwork-batch-") as place:
        for part, measure in (("speed", measure_speed), ("memory", measure_memory)):
            if part in settings.parts:
                fresh, judged = measure(settings, Path(place))
                figures |= fresh
                verdicts += judged
    conclude("batch", settings, figures, verdicts, settings.output)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
