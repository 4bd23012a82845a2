"""Decoded pictures kept on disk as `.npy` files, so that the next run starts at once."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.data import ImageSet

logger = logging.getLogger(__name__)

Pair = tuple[ImageSet, ImageSet]

_VERSION = 2


def default_cache_dir() -> Path:
    """`PATCHWORK_CACHE`, or the usual place for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PATCHWORK_CACHE") or Path(base) / "patchwork")


def cached(cache_dir: Path, name: str, sources: Sequence[Path], read: Callable[[], Pair]) -> Pair:
    """The decoded pair from the cache, or `read()` and keep it. A cache that cannot be used only costs time."""
    identity = [_VERSION, *sorted((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in sources)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    folder = cache_dir / f"{name}-{key}"
    if folder.is_dir():
        try:
            return _load_pair(folder)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("the cache in %s cannot be used (%s); decoding again", folder, error)
    pair = read()
    try:
        _save_pair(folder, pair)
    except OSError as error:
        logger.warning("the decoded pictures were not cached in %s (%s)", cache_dir, error)
    return pair


def _load_pair(folder: Path) -> Pair:
    class_names = tuple(json.loads((folder / "classes.json").read_text()))
    train, test = (
        ImageSet(
            images=np.load(folder / f"{split}_images.npy", allow_pickle=False),
            labels=np.load(folder / f"{split}_labels.npy", allow_pickle=False),
            class_names=class_names,
        )
        for split in ("train", "test")
    )
    return train, test


def _save_pair(folder: Path, pair: Pair) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that a run that is killed leaves no half-written cache behind.
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for split, part in zip(("train", "test"), pair, strict=True):
            np.save(fresh / f"{split}_images.npy", part.images, allow_pickle=False)
            np.save(fresh / f"{split}_labels.npy", part.labels, allow_pickle=False)
        (fresh / "classes.json").write_text(json.dumps(pair[0].class_names))
        if folder.is_dir():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
