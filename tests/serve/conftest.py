"""A checkpoint small enough to load in a moment, pictures for it, and an ear on all connections."""

import io
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from core.checkpoint import Checkpoint, save
from core.models import ViTConfig, build_model

CLASS_NAMES = ("cat", "dog", "frog", "ship")


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose answers differ from picture to picture."""
    config = ViTConfig(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=len(CLASS_NAMES))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config)
        torch.nn.init.normal_(
            model.get_parameter("head.weight")
        )  # zero at the start of training: all answers would be equal
    folder = tmp_path_factory.mktemp("checkpoint")
    save(
        folder,
        Checkpoint(
            model=model,
            model_config=config,
            class_names=CLASS_NAMES,
            mean=(0.4, 0.5, 0.6),
            std=(0.2, 0.25, 0.3),
            dataset="tiny",
            metrics={},
            training={},
            commit=None,
        ),
    )
    return folder


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
