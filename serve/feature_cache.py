"""Encoded pictures, kept until their memory is needed for newer ones."""

import threading
from typing import Any, Protocol, TypeVar

from cachetools import LRUCache


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Features = TypeVar("Features", bound=Sized)


class FeatureCache:
    """Features by the model's revision and the picture's content, the least recently used going first.

    Safe to use from many threads. On a GPU the bytes are the GPU's.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: LRUCache[tuple[str, str], Any] = LRUCache(max_bytes, getsizeof=lambda kept: kept.nbytes)
        self._lock = threading.Lock()

    def get(self, revision: str, key: str) -> Any | None:
        with self._lock:
            return self._kept.get((revision, key))

    def put(self, revision: str, key: str, features: Sized) -> None:
        """Keep the features, unless they alone are larger than the whole cache."""
        with self._lock:
            if features.nbytes <= self._kept.maxsize:
                self._kept[revision, key] = features

    @property
    def nbytes(self) -> int:
        with self._lock:
            return int(self._kept.currsize)
