"""What the README shows of the service, run as it stands against the service as it starts without a word."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import empty_serve, png
from PIL import Image
from ray import serve as ray_serve

from core.segment.labelled import labelled_scene
from serve.app import build
from serve.settings import Settings

SECTION = re.search(r"\n## Serve\n(.*?)\n## ", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
assert SECTION is not None
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", SECTION[1], re.DOTALL)
CURLS = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("curl ")]
PROGRAMS = [block for language, block in BLOCKS if language == "python"]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with empty_serve() as url:
        ray_serve.run(build(Settings()), name="patchwork", route_prefix="/")
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "picture.png").write_bytes(png(labelled_scene(35_000_100).image))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_curl(url: str, folder: Path) -> None:
    answers = [
        run(["bash", "-c", line.replace("curl ", "curl -sS --fail-with-body ", 1).replace(ADDRESS, url)], folder)
        for line in CURLS
    ]
    assert len(answers) == 4
    assert '"results"' in answers[0]
    with Image.open(folder / "overlay.png") as overlay:
        assert overlay.size == (256, 256)
    assert answers[2].count('"label"') == 3
    assert '"cifar10"' in answers[3]


def test_the_program(url: str, folder: Path) -> None:
    (program,) = PROGRAMS
    lines = run([sys.executable, "-c", program.replace(ADDRESS, url)], folder).splitlines()
    assert [line.split(" True ")[0].split(" False ")[0] for line in lines] == ["red circle", "star"]
