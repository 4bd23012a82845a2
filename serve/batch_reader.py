"""Reads the pictures of a batch job ahead of their use, from files and from rows of parquet."""

import contextlib
import errno
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.images import PictureError, cost, decode
from nodes.passwords import without_passwords
from serve.batch_input import Input, Item
from serve.batch_models import Picture
from serve.batch_storage import is_local, read_bytes

# A file is read whole; what is larger is no picture of an allowed size in any of the formats.
_MAX_FILE_BYTES = 2**29
_READERS_OF_REMOTE_FILES = 8
_ROWS_AT_ONCE = 16
# A picture's image_id, its name and its bytes.
_Bytes = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a picture cannot be used. by_storage: it was there when the input was listed, and could not be fetched."""

    image_id: int
    name: str
    error: str
    by_storage: bool = False

    def row(self) -> dict[str, Any]:
        return {"image_id": self.image_id, "picture": self.name, "error": without_passwords(self.error)}


class PictureReader:
    """Reads and decodes pictures, in threads of its own.

    ahead: pictures that wait for their use at most. pixels_ahead: of the decoded ones of them together, at most.
    """

    def __init__(self, source: Input, *, max_pixels: int, ahead: int, pixels_ahead: int, threads: int) -> None:
        self._source = source
        self._max_pixels = max_pixels
        self._ahead = ahead
        self._pixels_ahead = pixels_ahead
        self._threads = ThreadPoolExecutor(threads if is_local(source.fs) else _READERS_OF_REMOTE_FILES)

    def pictures(self, items: Sequence[tuple[int, Item]]) -> Iterator[Picture | Unusable]:
        """The pictures in order, read and decoded ahead of their use."""
        ahead: deque[tuple[int, Future[Picture | Unusable]]] = deque()
        room = _Room(self._pixels_ahead)
        try:
            for (image_id, _), read in zip(items, self._reads(items), strict=True):
                ahead.append((image_id, self._threads.submit(self._decode, read, room)))
                if len(ahead) >= self._ahead:
                    yield room.result(*ahead.popleft())
            while ahead:
                yield room.result(*ahead.popleft())
        finally:
            for _, future in ahead:
                future.cancel()
            room.open()

    def _reads(self, items: Sequence[tuple[int, Item]]) -> Iterator[Callable[[], _Bytes | Unusable]]:
        start = 0
        while start < len(items):
            _, first = items[start]
            if first.row < 0:
                yield lambda one=items[start]: self._read_file(*one)
                start += 1
                continue
            end = start
            while end < len(items) and items[end][1].path == first.path:
                end += 1
            yield from self._read_rows(items[start:end])
            start = end

    def _read_file(self, image_id: int, item: Item) -> _Bytes | Unusable:
        name = name_of(item)
        if item.size > _MAX_FILE_BYTES:
            return Unusable(image_id, name, f"The file has {item.size:,} bytes; at most {_MAX_FILE_BYTES:,} are read.")
        try:
            data = read_bytes(self._source.fs, self._source.path(item))
        except (PermissionError, IsADirectoryError) as error:
            return Unusable(image_id, name, f"The file cannot be read: {error.strerror or error}.")
        except OSError as error:
            seen = item.size >= 0
            return Unusable(image_id, name, f"The file cannot be read: {error.strerror or error}.", by_storage=seen)
        return image_id, name, data

    def _read_rows(self, items: Sequence[tuple[int, Item]]) -> Iterator[Callable[[], _Bytes | Unusable]]:
        """Rows of one parquet file that follow one another."""
        done = 0
        text, lost = "The parquet file has no such row any more.", False
        try:
            for (image_id, item), (data, name) in zip(
                items, _cells(self._source, items[0][1], len(items)), strict=False
            ):
                name = name_of(item) if name is None else name
                done += 1
                if data is None:
                    missing = Unusable(image_id, name, "The row holds no bytes of a picture.")
                    yield lambda one=missing: one
                else:
                    yield lambda one=(image_id, name, data): one
        except (OSError, pa.ArrowException, KeyError) as error:  # the last for a column that is gone
            text = f"The parquet file cannot be read here: {error}."
            lost = isinstance(error, OSError) and error.errno is not None
        for image_id, item in items[done:]:
            broken = Unusable(image_id, name_of(item), text, by_storage=lost)
            yield lambda one=broken: one

    def _decode(self, read: Callable[[], _Bytes | Unusable], room: "_Room") -> Picture | Unusable:
        found = read()
        if isinstance(found, Unusable):
            return found
        image_id, name, data = found
        room.enter(image_id, cost(data, max_pixels=self._max_pixels).pixels)
        try:
            return Picture(image_id=image_id, name=name, image=decode(data, max_pixels=self._max_pixels))
        except PictureError as error:
            return Unusable(image_id, name, str(error))
        except MemoryError:
            return Unusable(image_id, name, "There is not enough memory to decode it.")


class _Room:
    """Bounds the pixels of the pictures that are decoded and wait for their use.

    The picture that is used next is let in however large it is, or those after it could keep it out for ever.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._inside: dict[int, int] = {}
        self._next: float = 0
        self._changed = threading.Condition()

    def enter(self, image_id: int, pixels: int) -> None:
        """Return when there is room for a picture that is to be decoded."""
        with self._changed:
            self._changed.wait_for(
                lambda: image_id <= self._next or sum(self._inside.values()) + pixels <= self._pixels
            )
            self._inside[image_id] = pixels

    def result(self, image_id: int, future: Future[Picture | Unusable]) -> Picture | Unusable:
        """The picture that is used next, which leaves."""
        self._let_in(image_id)
        picture = future.result()
        with self._changed:
            self._inside.pop(image_id, None)
            self._changed.notify_all()
        return picture

    def open(self) -> None:
        """Nobody waits any longer."""
        self._let_in(math.inf)

    def _let_in(self, image_id: float) -> None:
        with self._changed:
            self._next = image_id
            self._changed.notify_all()


def _cells(source: Input, first: Item, count: int) -> Iterator[tuple[bytes | None, str | None]]:
    """Bytes and names of a parquet file's rows, page by page; a name that the file does not give is None."""
    wanted = [source.image_column, *([source.id_column] if source.id_column else [])]
    skip = first.row
    with _storage_errors():
        opened = source.fs.open(source.path(first), "rb")
    with opened:
        file = pq.ParquetFile(_Numbered(opened))
        for group in range(file.metadata.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            if skip >= length:
                skip -= length
                continue
            # A group at a time: damage in the next one must not take this one's rows along.
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=wanted):
                part = batch.slice(skip, count)
                skip = max(0, skip - batch.num_rows)
                count -= part.num_rows
                cells = part.column(source.image_column).to_pylist()
                names = part.column(source.id_column).to_pylist() if source.id_column else [None] * len(cells)
                for cell, name in zip(cells, names, strict=True):
                    data, path = (cell["bytes"], cell.get("path")) if isinstance(cell, dict) else (cell, None)
                    yield data, path if name is None else str(name)
                if not count:
                    return


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """OSErrors from within have a number, as those of the system have; those of object stores come without."""
    try:
        yield
    except OSError as error:
        error.errno = error.errno or errno.EIO
        raise


class _Numbered:
    """A file whose errors have a number, by which they differ from the OSErrors that pyarrow raises about damage."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        with _storage_errors():
            return self._file.read(size)


def name_of(item: Item) -> str:
    """What results call the picture: its path within the input, for a row of parquet with its number."""
    text = item.path.decode(errors="replace")
    return text if item.row < 0 else f"{text}#{item.row}"
