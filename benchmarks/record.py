"""What the benchmarks share: the spread of a figure over rounds, the verdicts, and the JSON record."""

import datetime
import json
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.runtime import describe_machine, source_commit


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the rounds of a benchmark."""

    median: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        """`3.41 (3.20 to 3.66)`: median, minimum and maximum."""
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target and what was measured; `higher_is_better` tells on which side of the target it must lie."""

    claim: str
    measured: float
    target: float
    unit: str
    higher_is_better: bool = True

    @property
    def met(self) -> bool:
        return self.measured >= self.target if self.higher_is_better else self.measured <= self.target

    def line(self) -> str:
        """`met: 3.4x over timm (target: at least 3x)`."""
        side = "at least" if self.higher_is_better else "at most"
        word = "met" if self.met else "MISSED"
        return f"{word}: {self.claim}: {self.measured:.3g} {self.unit} (target: {side} {self.target:g} {self.unit})"


def at_most(claim: str, measured: float, target: float, unit: str) -> Verdict:
    """A verdict on what must not exceed its target."""
    return Verdict(claim=claim, measured=measured, target=target, unit=unit, higher_is_better=False)


def conclude(name: str, settings: Any, figures: dict[str, Any], verdicts: Sequence[Verdict], file: Path | None) -> None:
    """Print a line a verdict, and write all figures with machine, commit and command to `file` if one is given."""
    print()
    for verdict in verdicts:
        print(verdict.line())
    if file is None:
        return
    record = {
        "benchmark": name,
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "verdicts": [{**asdict(verdict), "met": verdict.met} for verdict in verdicts],
        **figures,
        "load_average": os.getloadavg(),
        "machine": describe_machine(),
        "commit": source_commit(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2, default=str) + "\n")
    print(f"\nrecord: {file}")
