"""Health checks of a replica with a model: one that has not answered lately must prove that it can."""

import asyncio
import time
from collections.abc import Callable

from core.runtime import return_free_memory

_PROVED_FOR_S = 10.0


class Proof:
    """Keeps when the model last answered.

    Args:
        run_once: a call of the model for nothing; raises if it gives no usable numbers.
    """

    def __init__(self, run_once: Callable[[], None]) -> None:
        self._run_once = run_once
        self._proved_at = 0.0

    def renew(self) -> None:
        """The model has just answered."""
        self._proved_at = time.monotonic()

    async def check(self) -> None:
        """What Serve's regular check of a replica does; it replaces the replica when this raises."""
        if time.monotonic() - self._proved_at > _PROVED_FOR_S:
            await asyncio.to_thread(self._run_once)
        # Pictures of every size come and go: without this a replica grows for its first ten minutes under load.
        await asyncio.to_thread(return_free_memory)
