"""Pictures are read ahead of their use, but not more of them than memory is meant to hold."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve import batch_reader
from serve.batch_input import Item, find_input
from serve.batch_models import Picture
from serve.batch_reader import PictureReader

SIDE = 100
AHEAD = 16
THREADS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(20):
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for every picture that was decoded."""
    seen: list[int] = []
    decode: Callable[..., np.ndarray] = batch_reader.decode

    def counted(data: bytes, *, max_pixels: int) -> np.ndarray:
        seen.append(1)
        return decode(data, max_pixels=max_pixels)

    monkeypatch.setattr(batch_reader, "decode", counted)
    return seen


def reader(folder: Path, pixels_ahead: int) -> tuple[PictureReader, list[tuple[int, Item]]]:
    source = find_input(str(folder))
    items = list(enumerate((item for group in source.groups() for item in group), 1))
    return PictureReader(source, max_pixels=SIDE**2, ahead=AHEAD, pixels_ahead=pixels_ahead, threads=THREADS), items


def settled(decoded: list[int], count: int) -> int:
    """How many are decoded when so many are, and no more come."""
    deadline = time.monotonic() + 30
    while len(decoded) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    return len(decoded)


@pytest.mark.parametrize(("pixels_ahead", "waiting"), [(3 * SIDE**2, 3), (SIDE**2 - 1, 0), (10**9, AHEAD - 1)])
def test_what_waits_is_bounded_by_its_pixels_and_its_number(
    pixels_ahead: int, waiting: int, folder: Path, decoded: list[int]
) -> None:
    pictures, items = reader(folder, pixels_ahead)
    reds = []
    for used, picture in enumerate(pictures.pictures(items), 1):
        assert isinstance(picture, Picture)
        reds.append(int(picture.image[0, 0, 0]))
        if used < 4:
            assert settled(decoded, used + waiting) == used + waiting
    assert reds == list(range(20)) and len(decoded) == 20


def test_who_stops_in_between_leaves_no_thread_waiting(folder: Path, decoded: list[int]) -> None:
    pictures, items = reader(folder, SIDE**2 - 1)
    some = pictures.pictures(items)
    next(some)
    assert settled(decoded, 1) == 1  # all threads wait
    del some
    assert len(list(pictures.pictures(items))) == 20
    assert settled(decoded, 20) <= 22 + THREADS


def test_what_cannot_be_decoded_has_its_place_among_the_others(folder: Path) -> None:
    for number in range(1, 8):
        (folder / f"{number:02d}.png").write_bytes(b"broken")
    Image.new("RGB", (SIDE, SIDE + 1)).save(folder / "08.png")
    pictures, items = reader(folder, SIDE**2)
    used = [isinstance(one, Picture) for one in pictures.pictures(items)]
    assert used == [True] + [False] * 8 + [True] * 11
