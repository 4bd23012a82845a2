"""MLflow as one more place to log trials to, chosen anew by every process that runs or resumes a sweep."""

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from sweeps.flags import UsageError


def mlflow_logger(url: str | None, experiment: str) -> tune.Callback:
    """Tune's callback for this process; it does nothing without a URL.

    Tune pickles its callbacks into the experiment's folder and unpickles them when it restores. What it gets back there
    is the callback of the process that restores, so that a resumed run may log elsewhere, and no password is kept.

    Raises:
        UsageError: MLflow is not installed.
    """
    try:
        logger = _Mlflow(tracking_uri=url, experiment_name=experiment) if url else _Nothing()
    except (ImportError, RuntimeError) as error:
        raise UsageError("--mlflow-url needs MLflow: pip install 'patchwork-vision[mlflow]'") from error
    _OfThisProcess.current = logger
    return logger


class _OfThisProcess:
    current: tune.Callback

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _current, ()


class _Mlflow(_OfThisProcess, MLflowLoggerCallback): ...


class _Nothing(_OfThisProcess, tune.Callback): ...


def _current() -> tune.Callback:
    return _OfThisProcess.current
