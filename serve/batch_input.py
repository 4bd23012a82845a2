"""What is to be read: folders, globs and parquet files as one sorted listing, cut into shards.

The listing is a function of the input alone, and is never held in memory as a whole. A shard is what is written
together; beyond the first few hundred pictures its size depends only on where it begins, so that a listing can be cut
while it is read.
"""

import errno
import fnmatch
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from core.images import FORMATS
from nodes.command import UsageError
from serve.batch_storage import Store, is_local, is_same, resolve

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_SMALLEST_SHARD, _USUAL_SHARD, _LARGEST_SHARD = 4, 32, 1024
_SHARDS_OF_A_SMALL_INPUT, _SHARDS_OF_EQUAL_SIZE = 16, 1024
_GLOB = set("*?[")


class Item(NamedTuple):
    """A picture to be read.

    path: of its file, as bytes, relative to the input's root: names need not be text. row: in a parquet file, else -1.
    size: of the file in bytes, -1 if there was none to be seen, as behind a dangling link.
    """

    path: bytes
    row: int
    size: int


# Folders on the way down to another, by device and number.
_Folders = frozenset[tuple[int, int]]


class _Entry(NamedTuple):
    name: str
    is_folder: bool
    size: int


@dataclass(frozen=True, kw_only=True)
class Input:
    """A place with pictures. `files`, where it is given, are what a glob or a single name stands for."""

    url: str
    fs: AbstractFileSystem
    root: str
    recursive: bool = True
    image_column: str = "image"
    id_column: str | None = None
    files: tuple[_Entry, ...] | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def path(self, item: Item) -> str:
        """Where the item's file is."""
        return f"{self.root.rstrip('/')}/{os.fsdecode(item.path)}"

    def groups(self) -> Iterator[list[Item]]:
        """The items in order; those that are best read together (a parquet file's row group) in one list.

        Raises:
            UsageError: a folder or a parquet file cannot be read, lacks the column, or pictures and parquet are mixed.
        """
        self.left_out.clear()
        first: _Entry | None = None
        for entry in self._entries():
            first = first or entry
            if _is_parquet(entry.name) != _is_parquet(first.name):
                raise UsageError(
                    f"{self.url} holds both pictures and parquet files, such as {first.name} and {entry.name}; choose "
                    "with a glob in quotes, such as '*.parquet'"
                )
            if _is_parquet(entry.name):
                yield from self._row_groups(entry)
            else:
                yield [Item(os.fsencode(entry.name), -1, entry.size)]

    def _entries(self) -> Iterator[_Entry]:
        yield from self._walk("", frozenset()) if self.files is None else self.files

    def _walk(self, below: str, parents: _Folders) -> Iterator[_Entry]:
        entries, parents = _listed(self.fs, self.root, below, parents)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_folder:
                if self.recursive:
                    yield from self._walk(f"{below}{entry.name}/", parents)
            elif entry.name.lower().endswith(SUFFIXES) or _is_parquet(entry.name):
                yield entry._replace(name=f"{below}{entry.name}")
            else:
                self.left_out[PurePosixPath(entry.name).suffix.lower() or "no suffix"] += 1

    def _row_groups(self, entry: _Entry) -> Iterator[list[Item]]:
        item = Item(os.fsencode(entry.name), 0, entry.size)
        name = _printable(entry.name)
        try:
            with self.fs.open(self.path(item), "rb") as file:
                metadata = pq.ParquetFile(file).metadata
                schema = metadata.schema.to_arrow_schema()
                lengths = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"the parquet file {name} cannot be read: {error}") from error
        for flag, column in (("image-column", self.image_column), ("id-column", self.id_column)):
            if column is not None and column not in schema.names:
                raise UsageError(
                    f"the parquet file {name} has no column {column!r}; it has: {', '.join(schema.names)}. Name one "
                    f"with --{flag}"
                )
        kind = schema.field(self.image_column).type
        if not holds_bytes(kind):
            raise UsageError(
                f"the column {self.image_column!r} of {name} must hold bytes, or a struct with bytes and path, and "
                f"holds {kind}"
            )
        row = 0
        for length in lengths:
            yield [item._replace(row=row + offset) for offset in range(length)]
            row += length


def find_input(url: str, *, recursive: bool = True, image_column: str = "image", id_column: str | None = None) -> Input:
    """The folder, the file, or what the glob matches.

    Raises:
        UsageError: there is no such thing, or it cannot be looked at.
    """
    fs, path = resolve(url)

    def found(root: str, files: tuple[_Entry, ...] | None) -> Input:
        return Input(
            url=url,
            fs=fs,
            root=root,
            recursive=recursive,
            image_column=image_column,
            id_column=id_column,
            files=files,
        )

    try:
        kind = _kind(fs, path)
        if kind == "directory":
            return found(path, None)
        if kind is not None:
            root, _, name = path.rpartition("/")
            entry = _local_entry(Path(path), name) if is_local(fs) else _Entry(name, False, int(fs.info(path)["size"]))
            if entry is None:
                raise UsageError(f"{url} is neither a file nor a folder")
            return found(root or "/", (entry,))
        if not _GLOB & set(path):
            raise UsageError(f"there is no file or folder {url}")
    except OSError as error:
        raise UsageError(f"{url} cannot be read: {error.strerror or error}") from error
    root = _fixed_part(path)
    pattern = path[len(root) :].strip("/").split("/")
    if pattern[-1] == "**":
        pattern.append("*")
    files = sorted(_matching(fs, root, "", pattern, {0}, frozenset()))
    if not files:
        raise UsageError(f"nothing matches {url}")
    return found(root or "/", tuple(files))


def without_output(source: Input, store: Store) -> Input:
    """The input but for what the job writes: found the next time, it would pass for a change of the input.

    Raises:
        UsageError: the output is in a folder that is read whole.
    """
    if not is_same(source.fs, store.fs):
        return source
    root, output = source.root, store.root
    if is_local(source.fs):
        root, output = (os.fspath(Path(path).resolve()) for path in (root, output))
    root, output = (f"{path.strip('/')}/".lstrip("/") for path in (root, output))
    if not output.startswith(root):
        return source
    if source.files is not None:
        within = output.removeprefix(root)
        return replace(source, files=tuple(entry for entry in source.files if not entry.name.startswith(within)))
    if source.recursive:
        raise UsageError(f"the output {store.shown()} lies within the input {source.url}; give another --output")
    return source


def cut(groups: Iterator[list[Item]], shard_size: int | None) -> Iterator[list[Item]]:
    """Shards of the listing, in order.

    Args:
        shard_size: pictures in one; None for 32, growing with the place in the listing, so that a hundred million
            pictures are some hundred thousand shards, but fewer where there are not sixteen such shards, so that
            workers end at about the same time.
    """
    usual = _USUAL_SHARD
    if shard_size is None:
        first = list(_until(groups, _SHARDS_OF_A_SMALL_INPUT * _USUAL_SHARD))
        pictures = sum(map(len, first))
        usual = min(max(-(-pictures // _SHARDS_OF_A_SMALL_INPUT), _SMALLEST_SHARD), _USUAL_SHARD)
        groups = itertools.chain(first, groups)
    held: list[Item] = []
    start = 0
    for group in groups:
        size = shard_size or min(max(start // _SHARDS_OF_EQUAL_SIZE, usual), _LARGEST_SHARD)
        if held and len(held) + len(group) > size:
            yield held
            start += len(held)
            held = []
        held += group
        if len(held) >= size:
            parts = -(-len(held) // size)
            for part in range(parts):
                yield held[len(held) * part // parts : len(held) * (part + 1) // parts]
            start += len(held)
            held = []
    if held:
        yield held


def _until(groups: Iterator[list[Item]], count: int) -> Iterator[list[Item]]:
    """Groups that have so many items together, or all there are."""
    while count > 0 and (group := next(groups, None)) is not None:
        yield group
        count -= len(group)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a parquet column of this type can be read as pictures."""
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def why_empty(source: Input) -> str:
    """A sentence for an input without a single picture, after its listing was read."""
    known = ", ".join(FORMATS)
    if not source.left_out:
        return f"{source.url} holds no pictures ({known}) and no rows of parquet"
    others = ", ".join(f"{count:,} {suffix}" for suffix, count in source.left_out.most_common(3))
    return f"{source.url} holds no pictures ({known}) and no parquet, but {source.left_out.total():,} others: {others}"


def _matching(
    fs: AbstractFileSystem, root: str, below: str, pattern: Sequence[str], places: set[int], parents: _Folders
) -> Iterator[_Entry]:
    """The files below a folder that a glob matches.

    Args:
        pattern: the glob's parts; `**` is any folders, or none, and is not the last.
        places: how many of them the way to this folder may have used up.
    """
    for place in sorted(places):
        while pattern[place] == "**":
            place += 1
            places = places | {place}
    entries, parents = _listed(fs, root, below, parents)
    for entry in entries:
        fitting = [place for place in places if _fits(entry.name, pattern[place])]
        beyond = {place if pattern[place] == "**" else place + 1 for place in fitting}
        if not entry.is_folder:
            if len(pattern) in beyond:
                yield entry._replace(name=f"{below}{entry.name}")
        elif within := beyond - {len(pattern)}:
            yield from _matching(fs, root, f"{below}{entry.name}/", pattern, within, parents)


def _fits(name: str, part: str) -> bool:
    """As in a shell, hidden names are matched only by what begins with the dot itself."""
    return fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def _listed(fs: AbstractFileSystem, root: str, below: str, parents: _Folders) -> tuple[list[_Entry], _Folders]:
    """What is in a folder, sorted, and the folders that those within must not be: none in a link to one above it.

    Raises:
        UsageError: the folder cannot be read.
    """
    folder = f"{root.rstrip('/')}/{below}".rstrip("/") or "/"
    try:
        if not is_local(fs):
            infos = fs.ls(folder, detail=True)
            return sorted(entry for info in infos if (entry := _remote_entry(info, folder)).name), parents
        status = Path(folder).stat()
        this = (status.st_dev, status.st_ino)
        return ([] if this in parents else sorted(_list_local(folder))), parents | {this}
    except OSError as error:
        raise UsageError(f"the folder {_printable(folder)} cannot be read: {error.strerror or error}") from error


def _list_local(folder: str) -> list[_Entry]:
    with os.scandir(folder) as found:
        return [known for entry in found if (known := _local_entry(entry, entry.name))]


def _local_entry(found: "os.DirEntry[str] | Path", name: str) -> _Entry | None:
    """None for pipes, sockets and devices: to open one could wait for ever."""
    if found.is_dir():
        return _Entry(name, True, 0)
    if found.is_file():
        return _Entry(name, False, found.stat().st_size)
    if found.is_symlink() and not Path(found).exists():
        return _Entry(name, False, -1)
    return None


def _remote_entry(info: dict[str, object], root: str) -> _Entry:
    name = str(info["name"]).removeprefix(root.rstrip("/")).strip("/")
    size = info.get("size")
    return _Entry(name, info["type"] == "directory", size if isinstance(size, int) else -1)


def _kind(fs: AbstractFileSystem, path: str) -> str | None:
    try:
        kind = fs.info(path)["type"]
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
            return None
        raise
    # fsspec calls a link `other` or `link`, whatever it leads to.
    return "directory" if fs.isdir(path) else kind


def _fixed_part(pattern: str) -> str:
    """The folder that a glob's first wildcard is in."""
    first = min(pattern.index(sign) for sign in _GLOB if sign in pattern)
    return pattern[:first].rpartition("/")[0]


def _is_parquet(name: str) -> bool:
    return name.lower().partition("?")[0].endswith((".parquet", ".pq"))  # a link may have a query


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="replace")
