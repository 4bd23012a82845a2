"""Programs as users run them, in processes of their own."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# What this test has started; see conftest.py.
STARTED: list[subprocess.Popen[str]] = []


def start(
    words: Sequence[str], *, log: Path, before: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a program beside its log, in a session of its own.

    before: words before the command, such as those that run it on another host. env: what to add to the environment.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            [*before, *words],
            cwd=log.parent,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
            # A shell that started the tests in the background has them ignore Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    STARTED.append(process)
    return process


def run(
    words: Sequence[str], *, folder: Path, env: Mapping[str, str] | None = None, seconds: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder to its end. env: what to add to the environment."""
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
