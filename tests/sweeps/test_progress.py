import io
from typing import Any

import pytest
from ray.tune.experiment import Trial
from rich.console import Console

from sweeps.progress import ProgressView, format_count, format_seconds


def trial(patch_size: int, status: str, **last_result: Any) -> Trial:
    made = Trial("unused", stub=True, config={"patch_size": patch_size, "seed": 0})
    made.status = status
    if last_result:
        made.update_last_result({"train_flops": 2e12, "images_seen": 4500, **last_result})
    return made


TRIALS = [
    trial(2, Trial.PENDING),
    trial(4, Trial.RUNNING),
    trial(8, Trial.RUNNING, progress=0.25, wall_s=600.0, val_accuracy=0.512),
    trial(16, Trial.TERMINATED, progress=1.0, wall_s=2400.0, val_accuracy=0.434),
    trial(32, Trial.TERMINATED, error="the loss is nan"),
]


def shown(trials: list[Trial], *, terminal: bool) -> list[str]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, color_system=None)
    with ProgressView(console, total=5) as view:
        view.show(trials)
    return written.getvalue().splitlines()


def test_a_file_gets_a_line_for_each_trial_that_has_started() -> None:
    assert shown(TRIALS, terminal=False) == [
        "[2/5 done, 0s] patch_size=4,seed=0: running",
        "[2/5 done, 0s] patch_size=8,seed=0: running 25%, val accuracy 51.2%, about 30m00s left",
        "[2/5 done, 0s] patch_size=16,seed=0: done 100%, val accuracy 43.4%",
        "[2/5 done, 0s] patch_size=32,seed=0: failed",
    ]


def test_a_terminal_gets_a_table_with_the_running_ones_on_top() -> None:
    lines = shown(TRIALS, terminal=True)
    assert any("2 of 5 trials done" in line for line in lines)
    rows = [line.split() for line in lines if "patch_size=" in line]
    assert rows[:5] == [
        ["patch_size=8,seed=0", "running", "25%", "30m00s", "2,000", "4,500", "51.2%"],
        ["patch_size=4,seed=0", "running"],
        ["patch_size=16,seed=0", "done", "100%", "2,000", "4,500", "43.4%"],
        ["patch_size=32,seed=0", "failed", "2,000", "4,500"],
        ["patch_size=2,seed=0", "pending"],
    ]


def test_the_time_left_is_reckoned_from_what_was_done_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now)
    written = io.StringIO()
    with ProgressView(Console(file=written, width=120, color_system=None), total=4) as view:
        ended, running = trial(4, Trial.TERMINATED, progress=1.0), trial(8, Trial.RUNNING, progress=0.5, wall_s=60.0)
        view.show([ended, running])  # as a resumed sweep finds them
        now += 60
        running.update_last_result({"progress": 0.75, "wall_s": 120.0, "val_accuracy": 0.4})
        view.show([ended, running])
    clocks = [line.partition("]")[0] for line in written.getvalue().splitlines()]
    # A quarter of a trial took a minute; two and a quarter are left.
    assert clocks == ["[1/4 done, 0s", "[1/4 done, 0s", "[1/4 done, 1m00s, about 9m00s left"]


def test_where_trials_are_stopped_early_less_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now)
    written = io.StringIO()
    with ProgressView(Console(file=written, width=120, color_system=None), total=9, work=3.0) as view:
        paused = trial(4, Trial.RUNNING)
        view.show([paused])
        now += 60
        paused.update_last_result({"progress": 0.25, "wall_s": 60.0, "val_accuracy": 0.3})
        paused.status = Trial.PAUSED
        view.show([paused])
        now += 60
        paused.status = Trial.TERMINATED
        view.show([paused])
    assert written.getvalue().splitlines()[1:] == [
        "[0/9 done, 8% of the work, 1m00s, about 11m00s left] patch_size=4,seed=0: paused 25%, val accuracy 30.0%",
        "[1/9 done, 8% of the work, 2m00s, about 22m00s left] patch_size=4,seed=0: done 25%, val accuracy 30.0%",
    ]


def test_the_time_left_is_not_told_while_a_trial_beside_the_others_has_not_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now)
    written = io.StringIO()
    with ProgressView(Console(file=written, width=120, color_system=None), total=3) as view:
        fast, slow = trial(8, Trial.RUNNING), trial(4, Trial.RUNNING)
        view.show([fast, slow])
        now += 60
        fast.update_last_result({"progress": 0.25, "wall_s": 60.0, "val_accuracy": 0.3})
        view.show([fast, slow])
        now += 30
        slow.update_last_result({"progress": 0.25, "wall_s": 90.0, "val_accuracy": 0.3})
        view.show([fast, slow])
    clocks = [line.partition("]")[0] for line in written.getvalue().splitlines()]
    # Half a trial in a minute and a half; two and a half are left.
    assert clocks == ["[0/3 done, 0s", "[0/3 done, 0s", "[0/3 done, 1m00s", "[0/3 done, 1m30s, about 7m30s left"]


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0s"), (59.9, "59s"), (724.0, "12m04s"), (10_920.0, "3h02m")])
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (812_000, "812k"), (1_337_000, "1.34M"), (2e9, "2G")])
def test_counts(number: float, text: str) -> None:
    assert format_count(number) == text
