"""Shapes and types of `core` are checked at run time in tests; Ray is started bare and quiet."""

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

install_import_hook("core", "typechecker.checked")

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
os.environ.pop("RAY_ADDRESS", None)

from programs import STARTED

from core.data import Dataset, ImageSet, make_dataset
from core.runtime import import_torchvision
from core.shapes import CLASS_NAMES, generate

# The tests are many small products: threads would only wait for each other.
torch.set_num_threads(1)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import_torchvision()  # before anything else imports it: see its docstring


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first, as several files are tested at a time, and the many short ones last."""
    rooms = ("sweeps", "serve", "browser", "core")
    items.sort(key=lambda item: next((n for n, room in enumerate(rooms) if room in item.path.parts), len(rooms)))


class _ByFileAndService(LoadFileScheduling):
    """A file's tests go to one worker, and all of the browser's, which share a service."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "browser" if file.startswith("tests/browser/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByFileAndService:
    """In the place of `--dist loadfile`."""
    return _ByFileAndService(config, log)


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """A test that fails half-way must not leave its programs to the next one."""
    yield
    while STARTED:
        process = STARTED.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test run's own."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("PATCHWORK_CACHE", str(folder))
    return folder


def image_set(num_images: int, seed: int) -> ImageSet:
    images, labels = generate(num_images, seed)
    return ImageSet(images=images, labels=labels, class_names=CLASS_NAMES)


@pytest.fixture(scope="session")
def shapes() -> Dataset:
    """A few generated pictures: 360 for training, 40 for validation, 100 for testing."""
    return make_dataset(name="shapes", source="generated", train=image_set(400, 0), test=image_set(100, 1))
