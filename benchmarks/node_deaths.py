"""Three simulated nodes, one killed at a random moment of a sweep: what is lost?

    python -m benchmarks.node_deaths
    python -m benchmarks.node_deaths --kills 2 --output results/benchmarks/node_deaths.json

A small grid is swept undisturbed, and then once a kill. Each time a node is killed at a random moment, with all its
processes and without a word to anyone (SIGKILL), and replaced two seconds later, as an autoscaler would. Every trial
must end well, no trial may begin again from nothing where it had a checkpoint, and the frames must be those of the
undisturbed sweep, number for number.

Two times are told. Lost: what the killed sweep takes longer than the median of the undisturbed ones, which is noisy on
a machine with other work. Recovery: from the kill to the first checkpoint of a trial that was resumed. By then its
death was noticed, a process started, PyTorch loaded in it, and that part of an epoch trained again which had no
checkpoint yet.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from pandas.testing import assert_frame_equal
from ray.cluster_utils import Cluster

from benchmarks.record import Verdict, conclude, spread
from sweeps.results import RUN_SPECIFIC_COLUMNS, SweepResults, load

_SWEEP = Path(__file__).resolve().parents[1] / "sweeps" / "patch_size.py"
_NODES = 3
_SECONDS_TO_REPLACE = 2.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    kills: int = 10
    """How many sweeps have a node killed."""
    undisturbed: int = 2
    """How many sweeps run undisturbed, for comparison."""
    budget: float = 3e10
    """Training FLOPs of each trial."""
    seeds: int = 2
    """Seeds of each patch size."""
    patch_sizes: tuple[int, ...] = (2, 4, 8, 16)
    """Patch sizes of the grid."""
    seed: int = 0
    """Of the moments and the nodes."""
    output: Path | None = None
    """Write a JSON record here."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A node killed during a sweep.

    moment_s: since the sweep's first checkpoint. interrupted: trials that were resumed for it. recovery_s: until the
    first checkpoint of one of them; None if the node had no work. seconds: of the sweep, from its start to its end.
    """

    moment_s: float
    interrupted: int
    recovery_s: float | None
    seconds: float


@contextmanager
def cluster_of_nodes(count: int) -> Iterator[Cluster]:
    """A head without trials and `count` nodes with a CPU each, all on this machine."""
    bare = {"include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **bare})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1, **bare)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def replace_a_node(cluster: Cluster, choice: random.Random) -> None:
    """Kill a node with all its processes, and give the cluster another one a little later."""
    victim = choice.choice(sorted(cluster.worker_nodes, key=lambda node: node.node_id))
    cluster.remove_node(victim, allow_graceful=False)
    time.sleep(_SECONDS_TO_REPLACE)
    cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)


def start_sweep(cluster: Cluster, storage: Path, name: str, flags: Sequence[str]) -> subprocess.Popen[str]:
    """The sweep as a program of its own; its output goes to a file beside its results."""
    words = [*flags, "--address", str(cluster.address), "--storage", str(storage), "--name", name]
    with (storage / f"{name}.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, str(_SWEEP), *words], stdout=output, stderr=output, text=True, start_new_session=True
        )


def results_of(process: subprocess.Popen[str], storage: Path, name: str, seconds: float = 600) -> SweepResults:
    """The results of a sweep that must end well."""
    if process.wait(seconds) != 0:
        raise RuntimeError(f"the sweep ended with {process.returncode}: {(storage / f'{name}.txt').read_text()}")
    return load(storage / "patch_size" / name)


def saved_epochs(folder: Path) -> dict[str, int]:
    """How many checkpoints each trial has written so far."""
    numbers: dict[str, int] = {}
    for file in folder.glob("trials/*/checkpoint_*/train_state.pt"):
        trial = file.parts[-3]
        numbers[trial] = max(numbers.get(trial, 0), int(file.parts[-2].removeprefix("checkpoint_")) + 1)
    return numbers


def wait_for_checkpoints(folder: Path, process: subprocess.Popen[str], count: int, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while sum(saved_epochs(folder).values()) < count:
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"no checkpoints appeared in {folder}")
        time.sleep(0.05)


def seconds_to_recover(folder: Path, process: subprocess.Popen[str], killed_at: float) -> float | None:
    """From the kill until a resumed trial has written a checkpoint; None if the sweep ends without."""
    while process.poll() is None:
        for file in folder.glob("trials/*/checkpoint_*/history.json"):
            try:
                if json.loads(file.read_text())[-1]["attempt"] > 1:
                    return time.perf_counter() - killed_at
            except (OSError, ValueError):
                continue  # being written, or removed for a newer one
        time.sleep(0.1)
    return None


def check_same(undisturbed: SweepResults, killed: SweepResults) -> None:
    """
    Raises:
        AssertionError: a trial did not end well, or a number differs.
    """
    assert set(killed.trials["status"]) == {"completed"}, killed.trials[["trial", "status", "error"]]
    columns = list(RUN_SPECIFIC_COLUMNS)
    for mine, theirs in ((killed.trials, undisturbed.trials), (killed.epochs, undisturbed.epochs)):
        assert_frame_equal(mine.drop(columns=columns, errors="ignore"), theirs.drop(columns=columns, errors="ignore"))


def check_resumed(killed: SweepResults, saved: dict[str, int]) -> None:
    """
    Raises:
        AssertionError: a trial trained epochs again that were in storage when the node died.
    """
    trained_first = Counter(killed.epochs.query("attempt == 1")["trial"])
    for trial, epochs in saved.items():
        assert trained_first[trial] >= epochs, f"{trial} began again behind its last checkpoint"


def run(settings: Settings, storage: Path) -> tuple[list[float], list[Kill]]:
    """Seconds of the undisturbed sweeps, and what each kill cost."""
    flags = ["--dataset", "shapes", "--set", "embed_dim=16", "depth=1", "num_heads=2", "compile=false"]
    flags += ["--budget", f"{settings.budget:g}", "--seeds", f"{settings.seeds}", "--gpus-per-trial", "0"]
    flags += ["--vary", "patch_size=" + ",".join(map(str, settings.patch_sizes))]
    choice = random.Random(settings.seed)
    seconds, kills = [], []
    with cluster_of_nodes(_NODES) as cluster:
        whole: SweepResults | None = None
        training = 0.0
        for number in range(settings.undisturbed):
            started = time.perf_counter()
            process = start_sweep(cluster, storage, f"whole-{number}", flags)
            wait_for_checkpoints(storage / "patch_size" / f"whole-{number}", process, 1)
            first = time.perf_counter()
            whole = results_of(process, storage, f"whole-{number}")
            seconds.append(time.perf_counter() - started)
            training = time.perf_counter() - first
            print(f"undisturbed: {seconds[-1]:.1f} s", flush=True)
        assert whole is not None
        for number in range(settings.kills):
            name = f"killed-{number}"
            folder = storage / "patch_size" / name
            started = time.perf_counter()
            process = start_sweep(cluster, storage, name, flags)
            wait_for_checkpoints(folder, process, 1)
            moment = choice.uniform(0, 0.8 * training)
            time.sleep(moment)
            saved = saved_epochs(folder)
            killed_at = time.perf_counter()
            replace_a_node(cluster, choice)
            recovery = seconds_to_recover(folder, process, killed_at)
            killed = results_of(process, storage, name)
            elapsed = time.perf_counter() - started
            check_same(whole, killed)
            check_resumed(killed, saved)
            kills.append(
                Kill(
                    moment_s=moment,
                    interrupted=sum(int(attempt) > 1 for attempt in killed.trials["attempt"]),
                    recovery_s=recovery,
                    seconds=elapsed,
                )
            )
            print(f"kill {number + 1} at {moment:.1f} s: {kills[-1]}", flush=True)
    return seconds, kills


def main(settings: Settings) -> None:
    """Run all sweeps, and say what was lost."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_memory_monitor_refresh_ms="0")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        seconds, kills = run(settings, Path(scratch))
    base = spread(seconds)
    lost = spread([kill.seconds - base.median for kill in kills])
    recoveries = [kill.recovery_s for kill in kills if kill.recovery_s is not None]
    print(f"\nseconds of a sweep undisturbed: {base.text('.1f')}; lost by a kill: {lost.text('.1f')}")
    if recoveries:
        print(f"seconds from a kill to a checkpoint of a resumed trial: {spread(recoveries).text('.1f')}")
    # One that does not end whole, or with other numbers, has raised by now.
    verdicts = [
        Verdict(
            claim="sweeps with a killed node that end with the undisturbed one's numbers",
            measured=len(kills),
            target=settings.kills,
            unit="",
        ),
        Verdict(claim="of them with a trial interrupted", measured=len(recoveries), target=settings.kills / 2, unit=""),
    ]
    figures = {"undisturbed_s": seconds, "kills": [asdict(kill) for kill in kills], "lost_s": asdict(lost)}
    conclude("node_deaths", settings, figures, verdicts, settings.output)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
