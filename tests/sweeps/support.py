"""Running sweeps as users do: as programs, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import programs

from benchmarks.process_memory import family
from sweeps.results import RUN_SPECIFIC_COLUMNS

ROOT = Path(__file__).parents[2]
TINY = ("--dataset", "shapes", "--set", "embed_dim=16", "depth=1", "num_heads=2", "compile=false")

LONGER = (*TINY, "--budget", "3e10", "--seeds", "2")
# The same with half the trials: two at work and two to come.
FEWER = (*LONGER, "--vary", "patch_size=4,8")


def command(*flags: str, program: Path = ROOT / "sweeps" / "patch_size.py") -> list[str]:
    return [sys.executable, str(program), *flags]


def start(
    folder: Path, *flags: str, program: Path = ROOT / "sweeps" / "patch_size.py", before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a sweep in `folder`, in a session of its own; its output goes to `output.txt` there.

    before: words before the command, such as those that run it on another host.
    """
    return programs.start(command(*flags, program=program), log=folder / "output.txt", before=before)


def run(
    folder: Path, *flags: str, program: Path = ROOT / "sweeps" / "patch_size.py", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a sweep in `folder` to its end."""
    return programs.run(command(*flags, program=program), folder=folder, env=env)


def kill(process: subprocess.Popen[str]) -> None:
    """`kill -9` of the driver alone; Ray's own processes notice and go."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def reproducible(frame: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """What two runs of the same sweep must have in common, number by number."""
    return frame.drop(columns=[c for c in (*RUN_SPECIFIC_COLUMNS, *also) if c in frame])


def wait_for_checkpoints(folder: Path, count: int, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while len(list(folder.glob("trials/*/checkpoint_*/train_state.pt"))) < count:
        assert time.monotonic() < deadline, "no checkpoints appeared"
        time.sleep(0.05)


def descendants_named(root: int, name: str) -> list[int]:
    """Processes below `root` whose title begins with `name`."""
    return [pid for pid, command in family(root).items() if command.startswith(name)]


def hide_the_project(folder: Path) -> dict[str, str]:
    """An environment whose Python cannot import the project, for the nodes of a cluster."""
    # -P and an empty PYTHONPATH are not enough where the project is installed editable: hide that too.
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n"
        f"sys.path = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        "sys.path_hooks = [h for h in sys.path_hooks if '__editable__' not in repr(h)]\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
    known = subprocess.run([sys.executable, "-c", "import core"], cwd=folder, env=environment, capture_output=True)
    assert b"No module named 'core'" in known.stderr
    return environment


@contextmanager
def started_without_the_project(folder: Path, program: str, *words: str) -> Iterator[str]:
    """A program that starts a cluster, by a Python that cannot import the project; the first line that it prints.

    It is to end when its standard input does.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=hide_the_project(folder / "hide"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
