"""Pictures for batch jobs, and jobs run as users do: as programs, in processes of their own."""

import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import programs
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from core.segment.labelled import labelled_scene

ROOT = Path(__file__).parents[2]
PROMPTS = ("red circle", "star", "zebra")
_FIRST_SEED = 10_000_000  # the demo weights were not trained on scenes from here on
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def scene_png(number: int, side: int = 128) -> bytes:
    """A generated scene as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(labelled_scene(_FIRST_SEED + number, short_side=side).image).save(file, "PNG")
    return file.getvalue()


def write_scenes(folder: Path, count: int, side: int = 128) -> None:
    """`000.png` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(scene_png(number, side))


def write_hub_parquet(file: Path, cells: Sequence[bytes | None], *, rows_a_group: int) -> None:
    """As the hub stores pictures: a struct of bytes and path."""
    rows = [
        {"img": {"bytes": cell, "path": f"{file.stem}-{number}.png"}, "label": number}
        for number, cell in enumerate(cells)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=rows_a_group)


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "serve" / "batch.py"), *flags]


def start(*flags: str, log: Path, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a job in a session of its own; its output goes to the file.

    before: words before the command, such as those that run it on another host.
    """
    return programs.start(command(*flags), log=log, before=before, env=_ONE_THREAD)


def run(*flags: str, folder: Path, seconds: float = 250) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    return programs.run(command(*flags), folder=folder, env=_ONE_THREAD, seconds=seconds)


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Until so many shards are written."""
    deadline = time.monotonic() + seconds
    while len(parts(output)) < count:
        assert process.poll() is None, "the job ended before that"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parts(output: Path) -> set[str]:
    return {file.name for file in (output / "results").glob("part-*.parquet")}


def results(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "results")
