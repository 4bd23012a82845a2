"""Encoded pictures, kept until their memory is needed for newer ones."""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from cachetools import LRUCache


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


class FeatureCache:
    """Features by the model's revision and the picture's content; the least recently used go first.

    Safe to use from many threads. On a GPU the bytes are the GPU's.

    Args:
        watch: told of every look-up whether it was a hit, and how many bytes are kept.
    """

    def __init__(self, max_bytes: int, watch: Callable[[bool, int], None] | None = None) -> None:
        self._kept: LRUCache[tuple[str, str], Any] = LRUCache(max_bytes, getsizeof=lambda kept: kept.nbytes)
        self._lock = threading.Lock()
        self._watch = watch

    def get(self, revision: str, key: str) -> Any | None:
        with self._lock:
            return self._kept.get((revision, key))

    def put(self, revision: str, key: str, features: Sized) -> None:
        """Keep the features, unless they alone are larger than the whole cache."""
        with self._lock:
            if features.nbytes <= self._kept.maxsize:
                self._kept[revision, key] = features

    def looked_up(self, *, hit: bool) -> None:
        """Count a look-up."""
        if self._watch is not None:
            self._watch(hit, self.nbytes)

    @property
    def nbytes(self) -> int:
        with self._lock:
            return int(self._kept.currsize)
