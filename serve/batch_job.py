"""A job's folder: its settings, its listing, and which shards are done.

batch.json            settings, models, versions, counts; written first, so that the folder is known for what it is
listing/              the pictures, a row group a shard
results/              a file a shard; that it is there means that the shard is done
errors/               a file for every shard with pictures that could not be used
errors.parquet, instances.json    made of these at the end
"""

import datetime
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.runtime import describe_machine, source_commit
from nodes.command import UsageError, command_line
from nodes.passwords import without_passwords
from serve.batch_input import Input, Item, cut, why_empty
from serve.batch_storage import Store

VERSION = 2
RECORD, RESULTS, ERRORS, LISTING, OVERLAYS = "batch.json", "results", "errors", "listing", "overlays"
_ATTEMPTS = "attempts"
_PART = re.compile(r"part-(\d{6,})\.parquet", re.ASCII)
_SHARDS_A_LISTING_FILE = 1000
_LISTING_SCHEMA = pa.schema(
    [("image_id", pa.int64()), ("path", pa.binary()), ("row", pa.int64()), ("size", pa.int64())]
)
ERROR_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("picture", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
    ]
)


def part(folder: str, shard: int) -> str:
    """The file of a shard, such as `results/part-000017.parquet`; they sort as the shards do."""
    return f"{folder}/part-{shard:06d}.parquet"


def _parts(store: Store, folder: str) -> dict[str, int]:
    """The names of a folder's parts in order, each with its shard; what else is there, such as .DS_Store, is let be."""
    found = {name: _PART.fullmatch(name) for name in store.names(folder)}
    return {name: int(match[1]) for name, match in found.items() if match}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job's folder, opened by `open_job`."""

    store: Store
    record: dict[str, Any]

    @property
    def num_shards(self) -> int:
        return int(self.record["listing"]["shards"])

    @property
    def num_pictures(self) -> int:
        return int(self.record["listing"]["pictures"])

    @property
    def finished(self) -> bool:
        return self.record["finished"] is not None

    def done(self) -> set[int]:
        """Shards that were written, by this run or an earlier one."""
        return set(_parts(self.store, RESULTS).values())

    def pictures_in(self, shards: set[int]) -> int:
        """How many pictures these shards have together."""
        total = 0
        for number in sorted({shard // _SHARDS_A_LISTING_FILE for shard in shards}):
            with self.store.open(_listing_file(number)) as file:
                metadata = pq.ParquetFile(file).metadata
            first = number * _SHARDS_A_LISTING_FILE
            groups = range(metadata.num_row_groups)
            total += sum(metadata.row_group(group).num_rows for group in groups if first + group in shards)
        return total

    def begin_run(self, how: dict[str, Any]) -> None:
        """Note that a run begins: when, by what command, on which machine, and `how`.

        Errors of shards that a killed run did not get done are removed: this one may find none.
        """
        done = self.done()
        for name, shard in _parts(self.store, ERRORS).items():
            if shard not in done:
                self.store.remove(f"{ERRORS}/{name}")
        self.record["runs"].append(
            {
                "started": _now(),
                "finished": None,
                "command": command_line(),
                "commit": source_commit(),
                "machine": describe_machine(),
                **how,
            }
        )
        self.save()

    def end_run(self, figures: dict[str, Any], counts: dict[str, int]) -> None:
        """Note that all is done."""
        self.record["runs"][-1] |= {"finished": _now(), **figures}
        self.record.update(finished=_now(), counts=counts)
        self.save()

    def save(self) -> None:
        """Write the record in place of the old one."""
        self.store.write(RECORD, (json.dumps(self.record, indent=2) + "\n").encode())

    def clean(self) -> None:
        """Remove what killed runs left behind."""
        self.store.remove(_ATTEMPTS)
        self.store.sweep("", LISTING, RESULTS, ERRORS, f"{OVERLAYS}/*")


def open_job(store: Store, settings: dict[str, Any], source: Input, shard_size: int | None) -> Job:
    """Begin in an empty folder, or go on in one that holds the same job.

    Args:
        settings: all that the results depend on beside the pictures.
        shard_size: None for the job's own, or the usual one.

    Raises:
        UsageError: the folder holds other things, or a job with other settings or pictures; nothing was changed.
    """
    record = _read_record(store)
    if record is None:
        record = {
            "version": VERSION,
            "settings": settings,
            "input": without_passwords(source.url),
            "shard_size": shard_size,
            "listing": None,
            "finished": None,
            "counts": None,
            "runs": [],
        }
    else:
        asked = {**record["settings"], **settings} | ({"shard_size": shard_size} if shard_size else {})
        there = record["settings"] | {"shard_size": record["shard_size"]}
        _refuse_differences(store, there, asked)
    job = Job(store=store, record=record)
    shards = cut(source.groups(), record["shard_size"])
    if record["listing"] is None:
        first = next(shards, None)  # an input that cannot be read leaves no folder behind
        if first is None:
            raise UsageError(why_empty(source))
        job.save()
        try:
            record["listing"] = _write_listing(store, itertools.chain([first], shards))
        except UsageError:
            store.remove(LISTING)
            store.remove(RECORD)
            raise
        job.save()
    else:
        _compare_listing(store, record["listing"], shards)
    return job


def read_shard(store: Store, shard: int) -> list[tuple[int, Item]]:
    """The image ids and items of a shard."""
    number, group = divmod(shard, _SHARDS_A_LISTING_FILE)
    with store.open(_listing_file(number)) as file:
        columns = pq.ParquetFile(file).read_row_group(group).to_pydict()
    return [(image_id, Item(*rest)) for image_id, *rest in zip(*columns.values(), strict=True)]


def write_part(store: Store, folder: str, shard: int, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Put a shard's rows in their place, whole."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer, compression="zstd")
    store.write(part(folder, shard), buffer.getvalue())


def read_parts(store: Store, folder: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The parts of a folder in order, one in memory at a time."""
    for name in _parts(store, folder):
        with store.open(f"{folder}/{name}") as file:
            yield pq.read_table(file, columns=columns)


def attempts_file(run: str, shard: int) -> str:
    """Where the workers of a run note that they have begun a shard."""
    return f"{_ATTEMPTS}/{run}/{shard:06d}.json"


def _read_record(store: Store) -> dict[str, Any] | None:
    try:
        if store.fs.isfile(store.root):
            raise UsageError(f"the output {store.shown()} is a file; give a folder")
        names = store.names()
    except OSError as error:
        raise UsageError(f"the output {store.shown()} cannot be read: {error.strerror or error}") from error
    if RECORD not in names:
        if names:
            raise UsageError(
                f"the output {store.shown()} is not empty, and holds no {RECORD} of an earlier run; nothing there is "
                "overwritten: give another --output"
            )
        return None
    try:
        record = json.loads(store.read(RECORD))
        version = record["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{store.shown(RECORD)} is not of an earlier run ({error}); give another --output") from error
    if version != VERSION:
        raise UsageError(f"{store.shown(RECORD)} has version {version}, this code goes on with {VERSION} only")
    return record


def _refuse_differences(store: Store, there: dict[str, Any], asked: dict[str, Any]) -> None:
    differences = [
        f"{name}: {there.get(name)!r} there, {asked[name]!r} now" for name in asked if there.get(name) != asked[name]
    ]
    if differences:
        raise UsageError(
            f"the output {store.shown()} is that of other settings:\n  "
            + "\n  ".join(differences)
            + "\nNothing was changed. Give another --output, or the settings of then."
        )


def _write_listing(store: Store, shards: Iterator[list[Item]]) -> dict[str, Any]:
    digest, pictures = _Digest(), 0
    for number in itertools.count():
        some = itertools.islice(shards, _SHARDS_A_LISTING_FILE)
        first = next(some, None)
        if first is None:
            break
        with store.writing(_listing_file(number)) as file, pq.ParquetWriter(file, _LISTING_SCHEMA) as writer:
            for items in itertools.chain([first], some):
                digest.update(items)
                ids = range(pictures + 1, pictures + 1 + len(items))
                writer.write_table(pa.Table.from_arrays([pa.array(ids), *_columns(items)], schema=_LISTING_SCHEMA))
                pictures += len(items)
    return {"pictures": pictures, "shards": digest.shards, "sha256": digest.value()}


def _compare_listing(store: Store, known: dict[str, Any], shards: Iterator[list[Item]]) -> None:
    digest, pictures = _Digest(), 0
    for items in shards:
        digest.update(items)
        pictures += len(items)
    if digest.value() != known["sha256"]:
        was = f"{known['pictures']:,}, and now there are {pictures:,}"
        if pictures == known["pictures"]:
            was = f"{pictures:,}, and now as many, but of other names or sizes"
        raise UsageError(
            f"the input has changed since the output {store.shown()} was begun: there were {was}. Nothing was "
            "changed; give another --output"
        )


def _columns(items: Sequence[Item]) -> list[pa.Array]:
    paths, rows, sizes = zip(*items, strict=True)
    return [pa.array(paths, pa.binary()), pa.array(rows, pa.int64()), pa.array(sizes, pa.int64())]


class _Digest:
    """Of items in their order, however they are cut."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.shards = 0

    def update(self, items: Sequence[Item]) -> None:
        self.shards += 1
        for path, row, size in items:
            self._sha256.update(b"%s\0%d\0%d\n" % (path, row, size))

    def value(self) -> str:
        return self._sha256.hexdigest()


def _listing_file(number: int) -> str:
    return f"{LISTING}/part-{number:06d}.parquet"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
