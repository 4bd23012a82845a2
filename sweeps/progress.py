"""The live table of a sweep: redrawn in place on a terminal, a line now and then where the output is a file."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sweeps.trial import trial_name

_SECONDS_BETWEEN_LINES = 15.0
_ROWS_SHOWN = 24


class ProgressView:
    """Shows trials as Tune reports them; use as a context manager around the run.

    Args:
        total: how many trials there are.
        work: how much of them will be trained, in trials' worth, where a scheduler stops some; None for all.
    """

    def __init__(self, console: Console, total: int, work: float | None = None) -> None:
        self._console, self._total, self._work = console, total, work
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._started = time.monotonic()
        self._done_before: float | None = None  # of a resumed run, whose clock starts now
        self._shown_at = 0.0
        self._lines: dict[str, str] = {}

    def __enter__(self) -> "ProgressView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, trials: Sequence[Trial]) -> None:
        now = time.monotonic()
        if now - self._shown_at < (0.5 if self._live else _SECONDS_BETWEEN_LINES):
            return
        self._shown_at = now
        if self._done_before is None:
            self._done_before = self._work_done(trials)
        if self._live:
            self._live.update(self._table(trials), refresh=True)
        else:
            self._print_changes(trials)

    def _table(self, trials: Sequence[Trial]) -> Table:
        done = sum(trial.is_finished() for trial in trials)
        table = Table(
            title=f"{done} of {self._total} trials done, {self._clock(trials)}", title_justify="left", box=None
        )
        table.add_column("trial", no_wrap=True)
        table.add_column("state")
        for heading in ("progress", "left", "GFLOPs", "images", "val accuracy"):
            table.add_column(heading, justify="right")
        order = {Trial.RUNNING: 0, Trial.ERROR: 1, Trial.TERMINATED: 2, Trial.PAUSED: 3, Trial.PENDING: 4}
        ranked = sorted(trials, key=lambda t: (order.get(t.status, 5), -_accuracy(t.last_result)))
        for trial in ranked[:_ROWS_SHOWN]:
            last = trial.last_result or {}
            table.add_row(
                trial_name(trial.config),
                _state(trial),
                f"{last['progress']:.0%}" if "progress" in last else "",
                self._left(trial),
                f"{last['train_flops'] / 1e9:,.0f}" if "train_flops" in last else "",
                f"{last['images_seen']:,}" if "images_seen" in last else "",
                f"{last['val_accuracy']:.1%}" if last.get("val_accuracy", -1) >= 0 else "",
            )
        if len(ranked) > _ROWS_SHOWN:
            table.add_row(f"... and {len(ranked) - _ROWS_SHOWN} more")
        return table

    def _print_changes(self, trials: Sequence[Trial]) -> None:
        done = sum(trial.is_finished() for trial in trials)
        clock = self._clock(trials)
        changed = []
        for trial in trials:
            last = trial.last_result or {}
            line = _state(trial)
            if "progress" in last:
                line += f" {last['progress']:.0%}, val accuracy {_accuracy(last):.1%}"
            if left := self._left(trial):
                line += f", about {left} left"
            if trial.status != Trial.PENDING and self._lines.get(trial.trial_id) != line:
                self._lines[trial.trial_id] = line
                changed.append(f"{trial_name(trial.config)}: {line}")
        if len(changed) > _ROWS_SHOWN:
            changed = [*changed[:_ROWS_SHOWN], f"and {len(changed) - _ROWS_SHOWN} more"]
        for line in changed:
            self._console.print(f"[{done}/{self._total} done, {clock}] {line}", markup=False, soft_wrap=True)

    def _clock(self, trials: Sequence[Trial]) -> str:
        """How long it has run and, at its speed so far, how long it will still."""
        elapsed, done = time.monotonic() - self._started, self._work_done(trials)
        work = self._total if self._work is None else self._work
        clock = format_seconds(elapsed)
        if self._work is not None:  # else the trials that have ended tell it
            clock = f"{min(done / work, 1):.0%} of the work, {clock}"
        since = done - (self._done_before or 0.0)
        # Within the first trial's worth, what one that has not reported yet has done would be missed: too long a time.
        waiting = any(t.status == Trial.RUNNING and not (t.last_result or {}).get("progress") for t in trials)
        if since <= 0 or (since < 1 and waiting) or done >= work:
            return clock
        return f"{clock}, about {format_seconds(elapsed * (work - done) / since)} left"

    def _left(self, trial: Trial) -> str:
        """How long a running trial will still take at its speed so far; nothing before its first report, or where it
        may be stopped early."""
        last = trial.last_result or {}
        if trial.status != Trial.RUNNING or not last.get("progress") or self._work is not None:
            return ""
        return format_seconds(last["wall_s"] * (1 / last["progress"] - 1))

    def _work_done(self, trials: Sequence[Trial]) -> float:
        """In trials' worth: what they have reported. If none is stopped early, one that has ended is a whole one."""
        return sum(
            1.0 if t.is_finished() and self._work is None else (t.last_result or {}).get("progress", 0.0)
            for t in trials
        )


def _state(trial: Trial) -> str:
    if trial.last_result and trial.last_result.get("error"):
        return "failed"
    return {Trial.TERMINATED: "done", Trial.ERROR: "failed"}.get(trial.status, trial.status.lower())


def _accuracy(last: Mapping[str, Any] | None) -> float:
    accuracy = (last or {}).get("val_accuracy", -1.0)
    return accuracy if accuracy == accuracy else -1.0


def format_seconds(seconds: float) -> str:
    """`47s`, `12m04s`, `3h02m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def format_count(number: float) -> str:
    """`812k`, `1.34M`: three digits are enough to compare."""
    for divisor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= divisor:
            return f"{number / divisor:.3g}{unit}"
    return f"{number:.3g}"
