"""A sweep's trials as an Optuna study in a database, whatever searched them, so that optuna-dashboard can open it."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.exceptions import OptunaError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from nodes.command import UsageError
from nodes.passwords import without_passwords
from sweeps.results import TrialRecord
from sweeps.space import Choice, Domain, Space

logger = logging.getLogger(__name__)

_MAX_SEED = 1_000_000
_STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def to_distribution(domain: Domain) -> BaseDistribution:
    """Optuna's form of one of our domains."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's form of a space, with the seed beside what varies."""
    known = {name: to_distribution(domain) for name, domain in space.items()}
    # Optuna wants a parameter's choices to stay the same for the life of a study; the number of seeds may grow.
    return known | {"seed": IntDistribution(0, _MAX_SEED)}


class StudyWriter:
    """Adds each trial that has ended to the study once, also over several runs of a resumed sweep."""

    def __init__(self, url: str, name: str, known: Mapping[str, BaseDistribution]) -> None:
        """
        Raises:
            UsageError: the database cannot be opened, or its study of this name had other choices.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._known = dict(known)
        try:
            self._study = optuna.create_study(storage=url, study_name=name, direction="maximize", load_if_exists=True)
            written = self._study.get_trials(deepcopy=False)
        except (OptunaError, SQLAlchemyError, ImportError, ValueError) as error:
            reason = str(error).partition("\n")[0]  # a link to SQLAlchemy's pages follows
            raise UsageError(f"the study database {without_passwords(url)} cannot be opened: {reason}") from error
        self._written = {trial.user_attrs.get("trial_id") for trial in written}
        for parameter, before in ((k, v) for trial in written for k, v in trial.distributions.items() if k in known):
            try:
                check_distribution_compatibility(before, known[parameter])
            except ValueError as error:
                raise UsageError(
                    f"the study {name} in {without_passwords(url)} is of a sweep with other choices of {parameter}; "
                    "give this one another --name"
                ) from error

    def add(self, records: Iterable[TrialRecord]) -> None:
        """Add those that have ended and are not in the study yet. A database that fails is tried again next time."""
        try:
            for record in records:
                if record.status in _STATES and record.trial_id not in self._written:
                    self._add(record)
                    self._written.add(record.trial_id)
        except (OptunaError, SQLAlchemyError) as error:
            logger.warning("the study could not be written: %s", error)

    def _add(self, record: TrialRecord) -> None:
        accuracy = {row["epoch"]: row["val_accuracy"] for row in record.history}
        value = record.history[-1]["val_accuracy"] if record.history else None
        state = _STATES[record.status]
        if state is TrialState.COMPLETE and (value is None or not math.isfinite(value)):
            state = TrialState.FAIL
        params = {name: record.point[name] for name in self._known if name in record.point}
        attributes: dict[str, Any] = {"trial_id": record.trial_id, "name": record.name}
        if record.error:
            attributes["error"] = record.error
        self._study.add_trial(
            create_trial(
                state=state,
                value=None if state is TrialState.FAIL else value,
                params=params,
                distributions={name: self._known[name] for name in params},
                intermediate_values=accuracy,
                user_attrs=attributes,
            )
        )
