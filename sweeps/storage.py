"""Where a sweep keeps its trials: a folder that all nodes reach or a URI, and either may fail for a while."""

import errno
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow.fs

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long storage may fail before a trial or the sweep gives up; a full disk is seldom emptied by waiting.
PATIENCE_S, FULL_DISK_PATIENCE_S = 600.0, 60.0
_LONGEST_PAUSE_S = 5.0

# Tune puts this file into the folder of every stage. Where it is missing the folder is not the real one: a mount that
# has gone leaves an empty folder, which must not be taken for a sweep without checkpoints.
_MARKER = ".validate_storage_marker"

_LOCAL = pyarrow.fs.LocalFileSystem()


class StorageError(OSError):
    """Storage has failed for longer than we wait."""


class Patience:
    """Tells how long one has waited for storage already, and when to stop."""

    def __init__(self) -> None:
        self._since: float | None = None

    def succeeded(self) -> None:
        self._since = None

    def failed(self, error: OSError) -> None:
        """
        Raises:
            StorageError: storage has failed for too long.
        """
        self._since = self._since or time.monotonic()
        waited = time.monotonic() - self._since
        if waited > (FULL_DISK_PATIENCE_S if _is_full_disk(error) else PATIENCE_S):
            raise StorageError(f"storage has failed for {waited:.0f} s: {error}") from error
        logger.warning("storage fails, and will be tried again: %s", error)


def patiently(action: Callable[[], T]) -> T:
    """The result of `action`, which is tried again while it raises an `OSError`.

    Raises:
        StorageError: it has failed for too long.
    """
    patience, pause = Patience(), 0.25
    while True:
        try:
            return action()
        except OSError as error:
            patience.failed(error)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def storage_failure(error: BaseException | None) -> str | None:
    """What storage failed with, if that is at the root of an error, however Tune or a library has wrapped it."""
    while error is not None:
        if _is_full_disk(error):
            return "the disk is full"
        if isinstance(error, StorageError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "disk is full" in str(error)


def filesystem_of(folder: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or URI, and the path on it."""
    if "://" in folder:
        return pyarrow.fs.FileSystem.from_uri(folder)
    return _LOCAL, str(Path(folder).absolute())


def check_there(stage_folder: str) -> None:
    """
    Raises:
        FileNotFoundError: what is at the place of the stage's folder is not that folder.
        OSError: storage fails.
    """
    filesystem, root = filesystem_of(stage_folder)
    if filesystem.get_file_info(f"{root}/{_MARKER}").type == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, "storage is not what it was when the sweep began", stage_folder)


def has_whole_snapshot(stage_folder: str) -> bool:
    """Whether Tune's newest record of a stage can be read; it is not written at once, so a crash can tear it.

    Tune itself would begin again without a word. A grid begun again by us finds its checkpoints by their names.
    """
    filesystem, root = filesystem_of(stage_folder)
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    snapshots = sorted(entry.path for entry in entries if entry.base_name.startswith("experiment_state-"))
    if not snapshots:
        return False
    with filesystem.open_input_stream(snapshots[-1]) as stream:
        try:
            return bool(json.loads(stream.read()))
        except ValueError:
            logger.warning("%s is torn; the stage begins again, from the checkpoints of its trials", snapshots[-1])
            return False


def upload(folder: Path, target: str) -> None:
    """Copy a local folder to a path or URI."""
    filesystem, root = filesystem_of(target)
    pyarrow.fs.copy_files(str(folder), root, source_filesystem=_LOCAL, destination_filesystem=filesystem)


def download(source: str, target: Path) -> None:
    """Copy a file or folder from a path or URI to a local one."""
    filesystem, root = filesystem_of(source)
    pyarrow.fs.copy_files(root, str(target), source_filesystem=filesystem, destination_filesystem=_LOCAL)


def exists(file: str) -> bool:
    """Whether a file is at a path or URI."""
    filesystem, path = filesystem_of(file)
    return filesystem.get_file_info(path).type == pyarrow.fs.FileType.File


def remove(file: str) -> None:
    """Delete a file at a path or URI."""
    filesystem, path = filesystem_of(file)
    filesystem.delete_file(path)
