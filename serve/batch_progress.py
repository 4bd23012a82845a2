"""One line that says how far a batch job is: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nodes.command import OUT, say

_SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """Counts pictures. The rate is that of this run, from its first shard on: starting workers is not counted."""

    def __init__(self, *, total: int, done: int) -> None:
        self._total, self._done, self._unusable = total, done, 0
        self._before = done
        self._since: float | None = None
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if OUT.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=OUT)
            self._task = self._bar.add_task("workers are starting", total=total, completed=done)

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, *, pictures: int, unusable: int, began: float) -> None:
        """Count a shard that began at this time of the clock."""
        if self._since is None or began < self._since:
            self._since = began
        self._done += pictures
        self._unusable += unusable
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=self._text())
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = time.monotonic()
            say(f"{self._done:,} of {self._total:,} pictures, {self._text()}")

    @property
    def rate(self) -> float:
        """Pictures a second of this run."""
        passed = time.time() - (self._since or time.time())
        return (self._done - self._before) / passed if passed > 0 else 0.0

    def _text(self) -> str:
        return f"{self.rate:.3g} a second, {self._unusable:,} unusable"
