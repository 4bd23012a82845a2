"""Do trials that run at once share one copy of the pictures?

    python -m benchmarks.sweep_memory
    python -m benchmarks.sweep_memory --pictures 10000 --output results/benchmarks/sweep_memory.json

The real runner trains real trials (a tiny model, two passes, so that every trial reads every training picture) on a
set of CIFAR's size: one trial, then several at once; and both again on a set too small to matter. While they train, the
kernel is asked what each process holds (Linux only: /proc/PID/smaps_rollup). Columns, in MB of 10^6 bytes:

- rss: resident, shared pages counted in full in every process. Grows with the pictures although nothing is copied.
- pss: a page that n processes map counts 1/n in each, so that sums over processes are true.
- private: pages of this process alone. A copy of the pictures would be here.
- shared: pages of several processes; shm: of these, Ray's object store, where the pictures are.

Below each case stand two sums of pss over every process of the run, Ray's own and the driver with them: of all pages,
and of the object store's alone, which is the size of the pictures once. The verdict is what one more trial adds to the
store, and to its own private pages against a trial without pictures. The control trains on a copy of its own.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray
import torch
import tyro
from rich.console import Console

from benchmarks.process_memory import MEGABYTE, Usage, family, usage_of
from benchmarks.record import Verdict, at_most, conclude
from core.data import Dataset, ImageSet, make_dataset, names_of
from core.models import ViTConfig
from core.train import TrainConfig, plan, train
from nodes import command
from sweeps import run_folder, runner
from sweeps.flags import Flags
from sweeps.question import Sweep
from sweeps.space import Choice

_TINY_PICTURES = 1_000
_TARGET_SHARE = 0.1
_MODEL: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
_TRAINING: dict[str, Any] = {"batch_size": 500, "compile": False, "reports": 1}
_TRIAL_PROCESS = "ray::ImplicitFunc"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    pictures: int = 50_000
    """Pictures of the large set, a tenth of them for validation."""
    trials: int = 4
    """How many trials run at once."""
    images_per_trial: int = 90_000
    """Pictures each trial trains on, on either set."""
    output: Path | None = None
    """Write a JSON record of all processes here."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The trials' processes at one moment, and sums over the whole run: of pss, and of its part in the object store."""

    trials: dict[int, Usage]
    all_pss: float
    all_pss_shm: float

    @property
    def mapped(self) -> float:
        """What even the trial that has read the fewest pictures has in its memory."""
        return min(usage.shm for usage in self.trials.values())

    @property
    def private(self) -> float:
        """Mean over the trials."""
        return statistics.mean(usage.private for usage in self.trials.values())


def random_dataset(num_pictures: int) -> Dataset:
    """Pictures of CIFAR's size with nothing in them."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> ImageSet:
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return ImageSet(images=images, labels=np.arange(count, dtype=np.int64) % 10, class_names=names_of(10))

    return make_dataset(name="random", source="random numbers", train=draw(num_pictures), test=draw(100))


class Watch(threading.Thread):
    """Samples the run every second; keeps the latest moment at which all trials had mapped the most pictures."""

    def __init__(self, num_trials: int) -> None:
        super().__init__(daemon=True)
        self.num_trials = num_trials
        self.best: Sample | None = None
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(1.0):
            with suppress(OSError):  # a process ended between two reads: the next sample will do
                usages = {pid: (command, usage_of(pid)) for pid, command in family().items()}
                trials = {pid: usage for pid, (command, usage) in usages.items() if command.startswith(_TRIAL_PROCESS)}
                if len(trials) == self.num_trials:
                    everyone = [usage for _, usage in usages.values()]
                    all_pss, all_pss_shm = sum(u.pss for u in everyone), sum(u.pss_shm for u in everyone)
                    self._keep(Sample(trials=trials, all_pss=all_pss, all_pss_shm=all_pss_shm))

    def _keep(self, sample: Sample) -> None:
        # Pages once read stay mapped until the trial ends and lets go of them.
        if self.best is None or sample.mapped >= 0.99 * self.best.mapped:
            self.best = sample

    def stop(self) -> Sample:
        self._over.set()
        self.join()
        if self.best is None:
            raise RuntimeError(f"there was no moment at which {self.num_trials} trials ran")
        return self.best


def run_trials(settings: Settings, num_pictures: int, num_trials: int) -> Sample:
    """Train `num_trials` at once under the real runner, and return what was seen meanwhile."""
    sweep = Sweep(
        name="memory",
        question="Do trials share the pictures?",
        description="",
        factor="learning_rate",
        grid={"learning_rate": Choice((1e-3,))},
        base=_MODEL | _TRAINING,
        answer=lambda levels: "",
        budget=settings.images_per_trial * flops_per_image(),
    )
    # Ray takes its processors from here, so that the trials run at once on however few there are.
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": num_trials})
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(command, "OUT", Console(quiet=True)):
        flags = Flags(dataset="shapes", address="local", storage=folder, gpus_per_trial=0, seeds=num_trials)
        run = runner.Runner(sweep, run_folder.start(sweep, flags))
        try:
            run.data = random_dataset(num_pictures)
            watch = Watch(num_trials)
            watch.start()
            records = run.stage(runner.SEARCH_STAGE, run.resolved.points, ray.put(run.data))
            sample = watch.stop()
        finally:
            ray.shutdown()
    if [record.status for record in records] != ["completed"] * num_trials:
        raise RuntimeError(f"trials ended as {[(record.status, record.error) for record in records]}")
    return sample


def run_control(settings: Settings, num_pictures: int) -> Usage:
    """The same training in a process with pictures of its own; what it holds at its evaluation."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train_alone, settings, num_pictures).result()


def train_alone(settings: Settings, num_pictures: int) -> Usage:
    """What the control process does."""
    torch.set_num_threads(1)
    config = TrainConfig(model=ViTConfig(**_MODEL), images=settings.images_per_trial, device="cpu", **_TRAINING)
    seen: list[Usage] = []
    train(config, random_dataset(num_pictures), lambda _: seen.append(usage_of(os.getpid())))
    return seen[-1]


def flops_per_image() -> float:
    """Training FLOPs of the tiny model for one picture."""
    return plan(TrainConfig(model=ViTConfig(**_MODEL), images=1, **_TRAINING), 1).flops_per_image


def main(settings: Settings) -> None:
    """Run all cases, print the table and the verdict."""
    data_size = settings.pictures * 32 * 32 * 3 / MEGABYTE
    many = settings.trials
    print(f"{settings.pictures:,} pictures: {data_size:.1f} MB, nine tenths of them for training\n")
    print(f"{'':34}{'rss':>8}{'pss':>8}{'private':>9}{'shared':>8}{'shm':>8}")
    samples: dict[tuple[int, int], Sample] = {}
    controls: dict[int, Usage] = {}
    for pictures in (_TINY_PICTURES, settings.pictures):
        for num_trials in (1, many):
            sample = samples[pictures, num_trials] = run_trials(settings, pictures, num_trials)
            for pid, usage in sample.trials.items():
                print(f"{pictures:>6} pictures, {num_trials} at once, {pid:>7}{_columns(usage)}")
            print(
                f"{'  sums of pss, all processes':34}{'':8}{sample.all_pss:8.1f}{'':17}{sample.all_pss_shm:8.1f}",
                flush=True,
            )
        controls[pictures] = run_control(settings, pictures)
        print(f"{pictures:>6} pictures, a copy of its own  {_columns(controls[pictures])}", flush=True)

    alone, together, tiny = (
        samples[settings.pictures, 1],
        samples[settings.pictures, many],
        samples[_TINY_PICTURES, many],
    )
    in_store = (together.all_pss_shm - alone.all_pss_shm) / (many - 1)
    in_private = together.private - tiny.private
    own_copy = controls[settings.pictures].private - controls[_TINY_PICTURES].private
    print(
        f"\nfor one further trial the pictures add {in_store:.1f} MB in the store and {in_private:.1f} MB of its own;"
    )
    print(
        f"a process with its own copy needs {own_copy:.1f} MB. Every trial had mapped {together.mapped:.1f} MB of them."
    )
    verdicts = [
        at_most(
            claim="memory that the pictures add for each further trial, as a share of their size",
            measured=100 * (in_store + in_private) / data_size,
            target=100 * _TARGET_SHARE,
            unit="%",
        ),
        Verdict(
            claim="share of the pictures that each trial had mapped, so that sharing was put to the test",
            measured=100 * together.mapped / data_size,
            target=85.0,
            unit="%",
        ),
    ]
    figures = {
        "data_mb": data_size,
        "trials": {f"{p} pictures, {n} at once": asdict(sample) for (p, n), sample in samples.items()},
        "controls": {f"{p} pictures": asdict(usage) for p, usage in controls.items()},
        "further_trial_mb": {"in_store": in_store, "in_private": in_private, "own_copy": own_copy},
    }
    conclude("sweep_memory", settings, figures, verdicts, settings.output)


def _columns(usage: Usage) -> str:
    return f"{usage.rss:8.1f}{usage.pss:8.1f}{usage.private:9.1f}{usage.shared:8.1f}{usage.shm:8.1f}"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
