"""The worker of a batch job, an actor of Ray Data: shards in, files out, and what it did as a row."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from core.runtime import bound_kernel_caches
from serve.batch_input import Input, Item
from serve.batch_job import ERROR_SCHEMA, ERRORS, OVERLAYS, RESULTS, attempts_file, part, read_shard, write_part
from serve.batch_models import Picture, Task
from serve.batch_reader import PictureReader, Unusable, name_of
from serve.batch_storage import Store

# Pictures are read and go through the models by `batch_size`, fewer if they are large: what bounds a worker's memory.
_PIXELS_AT_ONCE = 64_000_000
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
    """All that a worker must know. run: a name of this run of the job alone. device: `cuda` where it is given a GPU."""

    task: Task
    source: Input
    store: Store
    run: str
    max_pixels: int
    batch_size: int
    threads: int
    device: str


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
        bound_kernel_caches()
        self._work = work
        self._has_device = work.device != "cuda" or torch.cuda.is_available()
        self._model: Any = work.task.load(work.device) if self._has_device else None
        self._reader = PictureReader(
            work.source,
            max_pixels=work.max_pixels,
            ahead=work.batch_size,
            pixels_ahead=_PIXELS_AT_ONCE,
            threads=work.threads,
        )
        self._lost = 0  # pictures in a row, also over shards, that could not be fetched
        self._failed, self._failure = 0, ""  # the same for those that the model failed on, and how it did on the last

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
        if not self._has_device:  # hours on the CPU are not what was meant
            raise JobStopped(
                f"a worker has been given a GPU of {platform.node()}, where PyTorch {torch.__version__} sees none: "
                "install a PyTorch that fits the driver, or pass --gpus-per-worker 0"
            )
        note = attempts_file(work.run, shard)
        attempts = self._note_attempt(note)
        items = read_shard(work.store, shard)
        if attempts.begun > _DEATHS_BEFORE_CARE:
            rows, unusable = self._carefully(shard, items, attempts, note)
        else:
            rows, unusable = self._together(shard, items)
        if unusable:
            write_part(work.store, ERRORS, shard, [one.row() for one in unusable], ERROR_SCHEMA)
        elif attempts.begun > 1:
            work.store.remove(part(ERRORS, shard))  # of a worker that died before the shard was done
        # Last: this file is what says that the shard is done.
        write_part(work.store, RESULTS, shard, rows, work.task.schema)
        work.store.remove(note)
        return {"pictures": len(items), "unusable": len(unusable)}

    def _together(self, shard: int, items: Sequence[tuple[int, Item]]) -> tuple[_Rows, list[Unusable]]:
        rows: _Rows = []
        unusable, batch = [], []
        for picture in self._reader.pictures(items):
            self._check_storage(picture)
            if isinstance(picture, Unusable):
                unusable.append(picture)
                continue
            pixels = sum(one.image.size // 3 for one in (*batch, picture))
            if batch and (len(batch) == self._work.batch_size or pixels > _PIXELS_AT_ONCE):
                unusable += self._ask(shard, batch, rows)
                batch = []
            batch.append(picture)
        unusable += self._ask(shard, batch, rows)
        return rows, sorted(unusable, key=lambda one: one.image_id)

    def _check_storage(self, picture: Picture | Unusable) -> None:
        """A file that vanished is an error of its own; when many in a row cannot be fetched, no picture is at fault."""
        if not (isinstance(picture, Unusable) and picture.by_storage):
            self._lost = 0
            return
        self._lost += 1
        if self._lost >= _NO_COINCIDENCE:
            raise JobStopped(
                f"{self._lost} pictures in a row that were listed cannot be fetched now, the last of them "
                f"{picture.name}: {picture.error}"
            )

    def _ask(self, shard: int, batch: Sequence[Picture], rows: _Rows) -> list[Unusable]:
        """Add the answers about a batch to the rows; one picture that the model fails on must not fail the others.

        When it fails on many in a row, such as after an error of the GPU that stays, no picture is at fault.
        """
        unusable = self._answer(shard, batch, rows) if batch else []
        if unusable and self._failed >= _NO_COINCIDENCE:
            raise JobStopped(f"the model fails on every picture, the last of them {unusable[-1].name}: {self._failure}")
        return unusable

    def _answer(self, shard: int, batch: Sequence[Picture], rows: _Rows) -> list[Unusable]:
        try:
            answers = self._work.task.answer(self._model, batch)
        except (RuntimeError, ValueError, MemoryError) as error:  # PyTorch's own, such as for memory, are RuntimeErrors
            if len(batch) > 1:
                return [one for picture in batch for one in self._answer(shard, [picture], rows)]
            self._failed += 1
            self._failure = f"{type(error).__name__}: {error}"
            return [Unusable(batch[0].image_id, batch[0].name, f"The model failed on it: {self._failure}")]
        self._failed = 0
        for name, data in answers.overlays.items():
            self._work.store.write(f"{OVERLAYS}/part-{shard:06d}/{name}", data)
        rows += answers.rows
        return []

    def _carefully(
        self, shard: int, items: Sequence[tuple[int, Item]], attempts: _Attempts, note: str
    ) -> tuple[_Rows, list[Unusable]]:
        """One picture at a time, each noted before it is touched; one over which a worker died twice is left out."""
        rows: _Rows = []
        unusable = []
        for image_id, item in items:
            deaths = attempts.deaths.get(str(image_id), 0)
            if deaths > 1:
                unusable.append(Unusable(image_id, name_of(item), f"It ended the worker's process {deaths} times."))
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
