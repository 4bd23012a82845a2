"""A checkpoint small enough to load in a moment, pictures for it, and an ear on all connections."""

import io
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Sixteen different PNG files of 32 x 32, the size of the model: nothing is scaled."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    files = []
    for pixels in colours.repeat(8, axis=1).repeat(8, axis=2):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="session")
def all_connects() -> list[Any]:
    seen: list[Any] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
            seen.append(arguments[1])

    sys.addaudithook(watch)  # for good: there is no way to take it back
    return seen


@pytest.fixture
def connects(all_connects: list[Any]) -> list[Any]:
    """Every attempt of this process to connect to anything, as the interpreter reports it."""
    all_connects.clear()
    return all_connects
