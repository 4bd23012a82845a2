"""Successive halving: trials wait at rungs, and of those that have come to a rung only the best third goes on."""

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

REDUCTION = 3


def remaining(trials: int) -> int:
    """How many of the trials that have all come to a rung go on from it."""
    return max(trials // REDUCTION, 1)


@dataclass
class Rung:
    """Which trials have come to a report, with which score, and which of them have been let on."""

    report: int
    scores: dict[str, float] = field(default_factory=dict)
    promoted: set[str] = field(default_factory=set)

    def best(self, count: int) -> list[str]:
        """The first `count` trials, the best first."""
        return sorted(self.scores, key=lambda trial_id: -self.scores[trial_id])[:count]


class SuccessiveHalving(FIFOScheduler):
    """Asynchronous successive halving in the form that promotes (Li et al., 2020, "A System for Massively Parallel
    Hyperparameter Tuning"), but for two things: new trials come first, and then the lowest rung.

    The rungs are reports 1, 3, 9, ... A trial that has come to one is paused there, and goes on when it is among the
    best third of all that have come to it. Ray's `ASHAScheduler` decides once, when the trial comes: the first ones,
    with nothing yet to be compared with, then run to their end, and so do most of a searcher's suggestions, each better
    than the last. When nothing is left to start, the best of the last rung goes on even if it has come there alone, and
    the trials that still wait are stopped.

    It keeps nothing on disk: a restored run brings the trials, and their last reports tell which rungs they have
    passed.

    Args:
        most_reports: how often the longest trial reports. The reports are counted by the result `epoch`, which a
            resumed trial keeps; of what Tune optimises, more is better.
    """

    def __init__(self, most_reports: int) -> None:
        super().__init__()
        powers = (REDUCTION**power for power in itertools.count())
        self.rungs = [Rung(report) for report in itertools.takewhile(lambda report: report < most_reports, powers)]
        self._most_reports = most_reports

    def work(self, trials: int) -> float:
        """How much of so many trials will be trained, in whole trials, where all report as often as the longest."""
        reports, passed = 0, 0
        for report in [*(rung.report for rung in self.rungs), self._most_reports]:
            reports += trials * (report - passed)
            passed, trials = report, remaining(trials)
        return reports / self._most_reports

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        last = trial.last_result or {}
        for rung in self.rungs:
            if last.get("epoch", 0) > rung.report:
                rung.scores[trial.trial_id] = math.inf
                rung.promoted.add(trial.trial_id)
            elif last.get("epoch", 0) == rung.report:
                rung.scores[trial.trial_id] = self._score(last)
                if trial.status == Trial.PENDING and not _is_whole(last):
                    trial.set_status(Trial.PAUSED)  # Tune would let every trial that waited go on

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        for rung in self.rungs:  # it keeps no place from the others
            rung.scores.pop(trial.trial_id, None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("error"):
            self.on_trial_error(tune_controller, trial)
        for rung in self.rungs:
            if result["epoch"] >= rung.report and trial.trial_id not in rung.promoted:
                rung.scores.setdefault(trial.trial_id, self._score(result))
                return TrialScheduler.CONTINUE if _is_whole(result) else TrialScheduler.PAUSE
        return TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trials = tune_controller.get_trials()
        if pending := [trial for trial in trials if trial.status == Trial.PENDING]:
            return pending[0]
        if not tune_controller.search_alg.is_finished():
            return None
        waiting = {trial.trial_id: trial for trial in trials if trial.status == Trial.PAUSED}
        idle = not any(trial.status == Trial.RUNNING for trial in trials)
        if chosen := self._promote(waiting, idle):
            return waiting[chosen]
        if idle:
            for trial in waiting.values():
                tune_controller.stop_trial(trial)
        return None

    def _score(self, result: Mapping[str, Any]) -> float:
        assert self.metric is not None
        return result[self.metric]

    def _promote(self, waiting: Collection[str], idle: bool) -> str | None:
        """The waiting trial that goes on next, if one does."""
        reached = [rung for rung in self.rungs if rung.scores]
        for trial_id in waiting:  # a restored run may carry out a pause that the one before had decided on
            if all(trial_id in rung.promoted for rung in reached if trial_id in rung.scores):
                return trial_id
        for rung in reached:
            all_came = idle and rung is reached[-1]
            going_on = remaining(len(rung.scores)) if all_came else len(rung.scores) // REDUCTION
            for trial_id in rung.best(going_on):
                if trial_id in waiting and trial_id not in rung.promoted:
                    rung.promoted.add(trial_id)
                    return trial_id
        return None


def _is_whole(result: Mapping[str, Any]) -> bool:
    return result.get("progress") == 1
