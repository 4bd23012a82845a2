"""The worker of a batch job, an actor of Ray Data: shards in, files out, and what it did as a row."""

import concurrent.futures
import contextlib
import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from core.images import PictureError, decode
from serve.batch_input import Input, Item
from serve.batch_job import ERROR_SCHEMA, ERRORS, OVERLAYS, RESULTS, attempts_file, part, read_shard, write_part
from serve.batch_models import Picture, Task
from serve.batch_storage import Store, is_local, read_bytes

# A file is read whole; what is larger is no picture of an allowed size in any of the formats.
_MAX_FILE_BYTES = 2**29
# Pictures go through the models by `batch_size`, or fewer if they are large: what bounds a worker's memory.
_PIXELS_AT_ONCE = 64_000_000
_READERS_OF_REMOTE_FILES = 8
_ROWS_AT_ONCE = 16
# Deaths of a shard's worker after which its pictures are taken one by one, to learn which of them is deadly.
_DEATHS_BEFORE_CARE = 2
# So many pictures in a row that fail in one way do not fail by themselves.
_NO_COINCIDENCE = 4
_Rows = list[dict[str, Any]]
_DONE_SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("began", pa.float64()),
        ("pictures", pa.int64()),
        ("unusable", pa.int64()),
        ("stopped", pa.string()),
    ]
)


class JobStopped(Exception):
    """The job cannot go on, and no picture is at fault; the message is a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that a worker must know. run: a name of this run of the job alone."""

    task: Task
    source: Input
    store: Store
    run: str
    max_pixels: int
    batch_size: int
    threads: int


@dataclass(frozen=True, slots=True)
class _Unusable:
    """Why a picture cannot be used. by_storage: it was there when the input was listed, and could not be fetched."""

    image_id: int
    name: str
    error: str
    by_storage: bool = False

    def row(self) -> dict[str, Any]:
        return {"image_id": self.image_id, "picture": self.name, "error": self.error}


@dataclass(kw_only=True)
class _Attempts:
    """How often workers of this run died over a shard, and over which of its pictures, each with its deaths."""

    begun: int = 0
    doing: int | None = None
    deaths: dict[str, int] = field(default_factory=dict)


class ShardWorker:
    """Loads the models once, then works through one shard a call."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.threads)
        self._work = work
        self._model: Any = work.task.load()
        num_readers = work.threads if is_local(work.source.fs) else _READERS_OF_REMOTE_FILES
        self._readers = ThreadPoolExecutor(num_readers)
        self._lost = 0  # pictures in a row, also over shards, that could not be fetched

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._try(shard) for shard in block["shard"].to_pylist()], _DONE_SCHEMA)

    def _try(self, shard: int) -> dict[str, Any]:
        """Raised here, a message would reach the driver within the traces of all processes between."""
        began = time.time()
        try:
            return {"shard": shard, "began": began, **self._finish(shard)}
        except JobStopped as stop:
            return {"shard": shard, "began": began, "stopped": str(stop)}
        except (OSError, pa.ArrowException) as error:  # of the output: the input's are caught where it is read
            return {"shard": shard, "began": began, "stopped": f"the output cannot be written or read: {error}"}

    def _finish(self, shard: int) -> dict[str, int]:
        work = self._work
        note = attempts_file(work.run, shard)
        attempts = self._note_attempt(note)
        items = read_shard(work.store, shard)
        if attempts.begun > _DEATHS_BEFORE_CARE:
            rows, unusable = self._carefully(shard, items, attempts, note)
        else:
            rows, unusable = self._together(shard, items)
        if unusable:
            write_part(work.store, ERRORS, shard, [one.row() for one in unusable], ERROR_SCHEMA)
        else:
            work.store.remove(part(ERRORS, shard))  # of a run that was killed before the shard was done
        # Last: this file is what says that the shard is done.
        write_part(work.store, RESULTS, shard, rows, work.task.schema)
        work.store.remove(note)
        return {"pictures": len(items), "unusable": len(unusable)}

    def _together(self, shard: int, items: Sequence[tuple[int, Item]]) -> tuple[_Rows, list[_Unusable]]:
        rows: _Rows = []
        unusable, batch = [], []
        for picture in self._pictures(items):
            self._check_storage(picture)
            if isinstance(picture, _Unusable):
                unusable.append(picture)
                continue
            pixels = sum(one.image.size // 3 for one in (*batch, picture))
            if batch and (len(batch) == self._work.batch_size or pixels > _PIXELS_AT_ONCE):
                unusable += self._ask(shard, batch, rows)
                batch = []
            batch.append(picture)
        unusable += self._ask(shard, batch, rows)
        return rows, sorted(unusable, key=lambda one: one.image_id)

    def _check_storage(self, picture: Picture | _Unusable) -> None:
        """A file that vanished is an error of its own; when many in a row cannot be fetched, no picture is at fault."""
        self._lost = self._lost + 1 if isinstance(picture, _Unusable) and picture.by_storage else 0
        if isinstance(picture, _Unusable) and self._lost >= _NO_COINCIDENCE:
            raise JobStopped(
                f"{self._lost} pictures in a row that were listed cannot be fetched now, the last of them "
                f"{picture.name}: {picture.error}"
            )

    def _ask(self, shard: int, batch: Sequence[Picture], rows: _Rows) -> list[_Unusable]:
        """Add the answers about a batch to the rows; one picture that the model fails on must not fail the others."""
        if not batch:
            return []
        try:
            answers = self._work.task.answer(self._model, batch)
        except (RuntimeError, ValueError, MemoryError) as error:  # PyTorch's own, such as for memory, are RuntimeErrors
            if len(batch) == 1:
                kind = type(error).__name__
                return [_Unusable(batch[0].image_id, batch[0].name, f"The model failed on it: {kind}: {error}")]
            failed = [one for picture in batch for one in self._ask(shard, [picture], rows)]
            if len(failed) == len(batch) >= _NO_COINCIDENCE:
                raise JobStopped(f"the model fails on every picture: {error}") from error
            return failed
        for name, data in answers.overlays.items():
            self._work.store.write(f"{OVERLAYS}/part-{shard:06d}/{name}", data)
        rows += answers.rows
        return []

    def _carefully(
        self, shard: int, items: Sequence[tuple[int, Item]], attempts: _Attempts, note: str
    ) -> tuple[_Rows, list[_Unusable]]:
        """One picture at a time, each noted before it is touched; one over which a worker died twice is left out."""
        rows: _Rows = []
        unusable = []
        for image_id, item in items:
            deaths = attempts.deaths.get(str(image_id), 0)
            if deaths > 1:
                name = _name(self._work.source, item)
                unusable.append(_Unusable(image_id, name, f"It ended the worker's process {deaths} times."))
                continue
            attempts.doing = image_id
            self._save(note, attempts)
            some, failed = self._together(shard, [(image_id, item)])
            rows += some
            unusable += failed
        return rows, unusable

    def _note_attempt(self, note: str) -> _Attempts:
        try:
            attempts = _Attempts(**json.loads(self._work.store.read(note)))
        except FileNotFoundError:
            attempts = _Attempts()
        if attempts.doing is not None:
            doing = str(attempts.doing)
            attempts.deaths[doing] = attempts.deaths.get(doing, 0) + 1
            attempts.doing = None
        attempts.begun += 1
        self._save(note, attempts)
        return attempts

    def _save(self, note: str, attempts: _Attempts) -> None:
        self._work.store.write(note, json.dumps(vars(attempts)).encode())

    def _pictures(self, items: Sequence[tuple[int, Item]]) -> Iterator[Picture | _Unusable]:
        """The pictures in order, read and decoded ahead of their use, but no more than a batch of them."""
        ahead: deque[Future[Picture | _Unusable]] = deque()
        for read in self._reads(items):
            ahead.append(self._readers.submit(read))
            if len(ahead) >= self._work.batch_size:
                yield ahead.popleft().result()
        while ahead:
            done = ahead.popleft()
            concurrent.futures.wait([done])
            yield done.result()

    def _reads(self, items: Sequence[tuple[int, Item]]) -> Iterator[Callable[[], Picture | _Unusable]]:
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

    def _read_file(self, image_id: int, item: Item) -> Picture | _Unusable:
        source = self._work.source
        name = _name(source, item)
        if item.size > _MAX_FILE_BYTES:
            return _Unusable(image_id, name, f"The file has {item.size:,} bytes; at most {_MAX_FILE_BYTES:,} are read.")
        try:
            data = read_bytes(source.fs, source.path(item))
        except (PermissionError, IsADirectoryError) as error:
            return _Unusable(image_id, name, f"The file cannot be read: {error.strerror or error}.")
        except OSError as error:
            seen = item.size >= 0
            return _Unusable(image_id, name, f"The file cannot be read: {error.strerror or error}.", by_storage=seen)
        return self._decode(image_id, name, data)

    def _read_rows(self, items: Sequence[tuple[int, Item]]) -> Iterator[Callable[[], Picture | _Unusable]]:
        """Rows of one parquet file that follow one another."""
        source = self._work.source
        done = 0
        try:
            for (image_id, item), (data, name) in zip(items, _cells(source, items[0][1], len(items)), strict=True):
                name = _name(source, item) if name is None else name
                done += 1
                if data is None:
                    missing = _Unusable(image_id, name, "The row holds no bytes of a picture.")
                    yield lambda one=missing: one
                else:
                    yield lambda one=(image_id, name, data): self._decode(*one)
        except (OSError, pa.ArrowException) as error:
            text = f"The parquet file cannot be read here: {error}."
            lost = isinstance(error, OSError) and error.errno is not None
            for image_id, item in items[done:]:
                broken = _Unusable(image_id, _name(source, item), text, by_storage=lost)
                yield lambda one=broken: one

    def _decode(self, image_id: int, name: str, data: bytes) -> Picture | _Unusable:
        try:
            return Picture(image_id=image_id, name=name, image=decode(data, max_pixels=self._work.max_pixels))
        except PictureError as error:
            return _Unusable(image_id, name, str(error))
        except MemoryError:
            return _Unusable(image_id, name, "There is not enough memory to decode it.")


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


def _name(source: Input, item: Item) -> str:
    """What results call the picture: its path within the input, for a row of parquet with its number."""
    text = item.path.decode(errors="replace")
    return text if item.row < 0 else f"{text}#{item.row}"
