"""Folders on this machine and behind URLs, and files in them that appear whole or not at all."""

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path, PurePath
from threading import Thread
from typing import IO, Any, BinaryIO
from urllib.parse import quote

from fsspec import AbstractFileSystem
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from nodes.command import UsageError
from nodes.passwords import password_has_slash

# Read by pyarrow itself, which is installed anyway; fsspec would need a package for each.
_READ_BY_PYARROW = ("s3", "gs", "gcs")
_QUERY = re.compile(r"\?[a-z_]+=[^?]*\Z")
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FRESH = ".fresh-"


def resolve(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that a path or URL is on, and the path there; of a local one, the absolute path.

    Raises:
        UsageError: there is no such kind of URL, or it needs a package that is not installed.
    """
    protocol, _ = split_protocol(url)
    if protocol in (None, "file"):
        return LocalFileSystem(), str(Path(url.removeprefix("file://")).expanduser().absolute())
    try:
        if protocol in _READ_BY_PYARROW:
            from pyarrow.fs import FileSystem

            fs, path = FileSystem.from_uri(_encoded(url))
            return ArrowFSWrapper(fs), path
        fs, path = url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError, OSError) as error:
        # That the URL is none may be told with the part of the password before its slash, as it were a port.
        unreadable = isinstance(error, ValueError) and password_has_slash(url)
        why = "a / in a password must be written %2F" if unreadable else error
        raise UsageError(f"{url} cannot be opened: {why}") from error
    return fs, path


def _encoded(url: str) -> str:
    """The URL with percent signs for what must not stand in its path as it is, such as blanks and a glob's `?` and `[`.

    What is encoded already is left so. The query is the last `?` with names and values behind it.
    """
    scheme, _, rest = url.partition("://")
    query = _QUERY.search(rest)
    place = rest[: query.start()] if query else rest
    bucket, slash, path = place.partition("/")
    path = quote(_BARE_PERCENT.sub("%25", path), safe="/%!$&'()*+,;=:@~")
    return f"{scheme}://{bucket}{slash}{path}{query[0] if query else ''}"


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether the paths are those of this machine."""
    return isinstance(fs, LocalFileSystem)


def is_same(one: AbstractFileSystem, other: AbstractFileSystem) -> bool:
    """Whether a path on the one leads to the same file on the other."""
    if isinstance(one, ArrowFSWrapper) and isinstance(other, ArrowFSWrapper):
        return one.fs == other.fs  # the wrappers differ in any case
    return one == other


def _is_object_store(fs: AbstractFileSystem) -> bool:
    """Whether a file needs no folder to be in: there are none, and making one costs two requests a level."""
    return isinstance(fs, ArrowFSWrapper)


def read_bytes(fs: AbstractFileSystem, path: str) -> bytes:
    """The whole file.

    Raises:
        OSError: it cannot be read, whatever the file system calls that.
    """
    try:
        data: Any = fs.cat_file(path)
    except OSError:
        raise
    except Exception as error:  # such as aiohttp's, of which only a 404 is made an OSError by fsspec
        refused = getattr(error, "status", None) in (401, 403)
        raise (PermissionError if refused else OSError)(str(error)) from error
    return data


@dataclass(frozen=True, slots=True)
class Store:
    """The output folder. Paths are relative to it; safe to use from many processes at once."""

    fs: AbstractFileSystem
    root: str

    @classmethod
    def at(cls, url: str) -> "Store":
        return cls(*resolve(url))

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def shown(self, name: str = "") -> str:
        """Where a file or the folder is, as a person would give it: a path on this machine, or a URL."""
        path = self.path(name).rstrip("/")
        return path if is_local(self.fs) else self.fs.unstrip_protocol(path)

    def names(self, folder: str = "") -> list[str]:
        """What is in a folder, sorted, but for files that are being written; nothing if there is no such folder."""
        try:
            entries = self.fs.ls(self.path(folder).rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        names = (str(entry).rstrip("/").rpartition("/")[2] for entry in entries)
        return sorted(name for name in names if name and not name.startswith(_FRESH))

    def read(self, name: str) -> bytes:
        """The file's content; raises FileNotFoundError if there is none."""
        return read_bytes(self.fs, self.path(name))

    def open(self, name: str) -> Any:
        """The file for reading, with a `seek`."""
        return self.fs.open(self.path(name), "rb")

    def remove(self, name: str) -> None:
        """The file or folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def write(self, name: str, data: bytes) -> None:
        """Put a file in its place, whole."""
        with self.writing(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to that takes its name when the block ends, and never if the block raises.

        Behind a URL it is written here first: what is uploaded to an object store appears when the upload is complete.
        """
        target = self.path(name)
        if not is_local(self.fs):
            with tempfile.TemporaryFile() as file:
                yield file  # type: ignore[misc]
                file.seek(0)
                # In a thread, where Ctrl-C does not come: a stream that is left early puts in place what it has.
                uploaded: Future[None] = Future()
                uploader = Thread(target=lambda: _settle(uploaded, self._upload, file, target))
                try:
                    uploader.start()
                    uploaded.result()
                finally:
                    if uploader.ident is not None:
                        wait([uploaded])  # no join: one that was interrupted takes the thread for ended
            return
        folder = Path(target).parent
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{_FRESH}{uuid.uuid4().hex}"
        try:
            with fresh.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)

    def _upload(self, file: IO[bytes], target: str) -> None:
        if not _is_object_store(self.fs):
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        remote: Any = self.fs.open(target, "wb")
        with remote:
            while block := file.read(2**23):
                remote.write(block)

    def sweep(self, *folders: str) -> None:
        """Remove what killed processes were writing. Folders may hold wildcards."""
        if is_local(self.fs):
            for folder in folders:
                for file in Path(self.root).glob(os.fspath(PurePath(folder, f"{_FRESH}*"))):
                    file.unlink(missing_ok=True)


def _settle(future: Future[None], work: Callable[..., None], *arguments: object) -> None:
    try:
        future.set_result(work(*arguments))
    except BaseException as error:
        future.set_exception(error)
