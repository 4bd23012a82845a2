"""The Optuna searcher that a sweep uses: every setting once, and numbers to choose from in their order."""

import itertools
import json
import random
from typing import Any, ClassVar

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from sweeps.space import Choice, Domain, Space
from sweeps.study import to_distribution

_ATTEMPTS = 20


class DistinctOptunaSearch(OptunaSearch):
    """Optuna, asked again where it suggests what it has before: trained with the same seed, that ends the same.

    A sampler that has made up its mind is not asked for ever: of choices alone, one that is left is drawn blindly.
    Of numbers to choose from Optuna sees the ranks, so that what it learns of one tells it of its neighbours too.

    Args:
        space: domains by name.
        by_first_report: Optuna is told how a trial does at its first report, and not at its end: where a scheduler lets
            only some trials go on, that is where all of them can be compared.

    Attributes:
        at_once: how many trials may be unknown to Optuna; while they are, it suggests nothing. Of the process, and not
            of what Tune pickles. Tune's own limit counts trials that a scheduler has paused, too.
    """

    at_once: ClassVar[int] = 1

    def __init__(self, space: Space, *, by_first_report: bool = False, **options: Any) -> None:
        self._by_first_report = by_first_report
        self._ranked = {name: ranks for name, domain in space.items() if (ranks := _in_order(domain))}
        super().__init__({name: self._distribution(name, domain) for name, domain in space.items()}, **options)
        self._domains = space
        self._suggested: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if len(self._ot_trials.keys() - self._completed_trials) >= self.at_once:
            return None
        for _ in range(_ATTEMPTS):
            setting = self._next(trial_id)
            if _key(setting) not in self._suggested:
                break
            # As failed: the sampler learns nothing from it.
            self._study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        else:
            if left := self._left():
                self._study.enqueue_trial(self._in_ranks(random.Random(len(left)).choice(left)))
            setting = self._next(trial_id)
        self._suggested.add(_key(setting))
        return setting

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._by_first_report:
            self.on_trial_complete(trial_id, result)
        else:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self._completed_trials:
            super().on_trial_complete(trial_id, result, error)

    @property
    def _study(self) -> Any:
        return self._ot_study

    def _distribution(self, name: str, domain: Domain) -> BaseDistribution:
        return IntDistribution(0, len(self._ranked[name]) - 1) if name in self._ranked else to_distribution(domain)

    def _next(self, trial_id: str) -> dict[str, Any] | None:
        suggested = super().suggest(trial_id)
        return suggested and {n: self._ranked[n][v] if n in self._ranked else v for n, v in suggested.items()}

    def _in_ranks(self, setting: dict[str, Any]) -> dict[str, Any]:
        return {n: self._ranked[n].index(v) if n in self._ranked else v for n, v in setting.items()}

    def _left(self) -> list[dict[str, Any]]:
        """The settings not suggested yet, where they can be counted."""
        choices = {name: domain.values for name, domain in self._domains.items() if isinstance(domain, Choice)}
        if len(choices) < len(self._domains):
            return []
        settings = (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
        return [setting for setting in settings if _key(setting) not in self._suggested]


def _in_order(domain: Domain) -> list[float] | None:
    if isinstance(domain, Choice) and all(type(value) in (int, float) for value in domain.values):
        return sorted(domain.values)
    return None


def _key(setting: dict[str, Any] | None) -> str:
    return json.dumps(setting, sort_keys=True)
