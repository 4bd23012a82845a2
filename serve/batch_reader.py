"""Reads the pictures of a batch job ahead of their use, from files and from rows of parquet."""

import concurrent.futures
import contextlib
import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.images import PictureError, decode
from serve.batch_input import Input, Item
from serve.batch_models import Picture
from serve.batch_storage import is_local, read_bytes

# A file is read whole; what is larger is no picture of an allowed size in any of the formats.
_MAX_FILE_BYTES = 2**29
_READERS_OF_REMOTE_FILES = 8
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a picture cannot be used. by_storage: it was there when the input was listed, and could not be fetched."""

    image_id: int
    name: str
    error: str
    by_storage: bool = False

    def row(self) -> dict[str, Any]:
        return {"image_id": self.image_id, "picture": self.name, "error": self.error}


class PictureReader:
    """Reads and decodes pictures, in threads of its own."""

    def __init__(self, source: Input, *, max_pixels: int, ahead: int, threads: int) -> None:
        self._source = source
        self._max_pixels = max_pixels
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(threads if is_local(source.fs) else _READERS_OF_REMOTE_FILES)

    def pictures(self, items: Sequence[tuple[int, Item]]) -> Iterator[Picture | Unusable]:
        """The pictures in order, read and decoded ahead of their use, but no more than `ahead`."""
        ahead: deque[Future[Picture | Unusable]] = deque()
        for read in self._reads(items):
            ahead.append(self._threads.submit(read))
            if len(ahead) >= self._ahead:
                yield ahead.popleft().result()
        while ahead:
            done = ahead.popleft()
            concurrent.futures.wait([done])
            yield done.result()

    def _reads(self, items: Sequence[tuple[int, Item]]) -> Iterator[Callable[[], Picture | Unusable]]:
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

    def _read_file(self, image_id: int, item: Item) -> Picture | Unusable:
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
        return self._decode(image_id, name, data)

    def _read_rows(self, items: Sequence[tuple[int, Item]]) -> Iterator[Callable[[], Picture | Unusable]]:
        """Rows of one parquet file that follow one another."""
        done = 0
        try:
            for (image_id, item), (data, name) in zip(
                items, _cells(self._source, items[0][1], len(items)), strict=True
            ):
                name = name_of(item) if name is None else name
                done += 1
                if data is None:
                    missing = Unusable(image_id, name, "The row holds no bytes of a picture.")
                    yield lambda one=missing: one
                else:
                    yield lambda one=(image_id, name, data): self._decode(*one)
        except (OSError, pa.ArrowException) as error:
            text = f"The parquet file cannot be read here: {error}."
            lost = isinstance(error, OSError) and error.errno is not None
            for image_id, item in items[done:]:
                broken = Unusable(image_id, name_of(item), text, by_storage=lost)
                yield lambda one=broken: one

    def _decode(self, image_id: int, name: str, data: bytes) -> Picture | Unusable:
        try:
            return Picture(image_id=image_id, name=name, image=decode(data, max_pixels=self._max_pixels))
        except PictureError as error:
            return Unusable(image_id, name, str(error))
        except MemoryError:
            return Unusable(image_id, name, "There is not enough memory to decode it.")


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
