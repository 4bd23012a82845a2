"""The Optuna searcher that a sweep uses: every setting once."""

import itertools
import json
import random
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

_ATTEMPTS = 20


class DistinctOptunaSearch(OptunaSearch):
    """Optuna, asked again where it suggests what it has before: trained with the same seed, that ends the same.

    A sampler that has made up its mind is not asked for ever: of choices alone, one that is left is drawn blindly.

    Args:
        space: distributions by name.
    """

    def __init__(self, space: dict[str, Any], **options: Any) -> None:
        super().__init__(space, **options)
        self._domains = space
        self._suggested: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        for _ in range(_ATTEMPTS):
            setting = super().suggest(trial_id)
            if _key(setting) not in self._suggested:
                break
            # As failed: the sampler learns nothing from it.
            self._study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        else:
            if left := self._left():
                self._study.enqueue_trial(random.Random(len(left)).choice(left))
            setting = super().suggest(trial_id)
        self._suggested.add(_key(setting))
        return setting

    @property
    def _study(self) -> Any:
        return self._ot_study

    def _left(self) -> list[dict[str, Any]]:
        """The settings not suggested yet, where they can be counted."""
        if not all(isinstance(domain, CategoricalDistribution) for domain in self._domains.values()):
            return []
        combinations = itertools.product(*(domain.choices for domain in self._domains.values()))
        settings = (dict(zip(self._domains, values, strict=True)) for values in combinations)
        return [setting for setting in settings if _key(setting) not in self._suggested]


def _key(setting: dict[str, Any] | None) -> str:
    return json.dumps(setting, sort_keys=True)
