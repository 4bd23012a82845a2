"""Decoded pictures kept on disk as `.npy` files, so that the next run starts at once."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.data import ImageSet

logger = logging.getLogger(__name__)

# By the split's name: `train`, `test`, and where the source has one, `val`.
Splits = dict[str, ImageSet]

_VERSION = 2
_IMAGES, _LABELS = "_images.npy", "_labels.npy"
_KEPT_UNUSED_S = 30 * 24 * 3600.0


def default_cache_dir() -> Path:
    """`PATCHWORK_CACHE`, or the usual place for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PATCHWORK_CACHE") or Path(base) / "patchwork")


def cached(cache_dir: Path, name: str, sources: Sequence[Path], read: Callable[[], Splits]) -> Splits:
    """The decoded splits from the cache, or `read()` and keep them. A cache that cannot be used only costs time.

    What no run has used for a month, since its sources changed or are gone, is removed when something is added.
    """
    identity = [_VERSION, *sorted((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in sources)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    folder = cache_dir / f"{name}-{key}"
    if folder.is_dir():
        try:
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(folder)
            return _load(folder)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("the cache in %s cannot be used (%s); decoding again", folder, error)
    splits = read()
    try:
        _save(folder, splits)
        _remove_unused(cache_dir, name)
    except OSError as error:
        logger.warning("the decoded pictures were not cached in %s (%s)", cache_dir, error)
    return splits


def _remove_unused(cache_dir: Path, name: str) -> None:
    ours = re.compile(rf"{re.escape(name)}-[0-9a-f]{{20}}|\.{re.escape(name)}-[0-9a-f]{{20}}-\w+")
    for folder in cache_dir.iterdir():
        if ours.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > _KEPT_UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _load(folder: Path) -> Splits:
    class_names = tuple(json.loads((folder / "classes.json").read_text()))
    names = [file.name.removesuffix(_IMAGES) for file in folder.glob(f"*{_IMAGES}")]
    splits = {
        name: ImageSet(
            images=np.load(folder / f"{name}{_IMAGES}", allow_pickle=False),
            labels=np.load(folder / f"{name}{_LABELS}", allow_pickle=False),
            class_names=class_names,
        )
        for name in names
    }
    return {"train": splits.pop("train"), "test": splits.pop("test"), **splits}


def _save(folder: Path, splits: Splits) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that a run that is killed leaves no half-written cache behind.
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, part in splits.items():
            np.save(fresh / f"{name}{_IMAGES}", part.images, allow_pickle=False)
            np.save(fresh / f"{name}{_LABELS}", part.labels, allow_pickle=False)
        (fresh / "classes.json").write_text(json.dumps(splits["train"].class_names))
        if folder.is_dir():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
