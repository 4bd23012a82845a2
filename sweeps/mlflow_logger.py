"""MLflow as one more place to log trials to, chosen anew by every process that runs or resumes a sweep."""

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from nodes.command import UsageError
from nodes.passwords import without_passwords


def mlflow_logger(url: str | None, experiment: str) -> tune.Callback:
    """Tune's callback for this process; it does nothing without a URL.

    Tune pickles its callbacks into the experiment's folder and unpickles them when it restores. What it gets back there
    is the callback of the process that restores, so that a resumed run may log elsewhere, and no password is kept.

    Raises:
        UsageError: MLflow is not installed, or cannot log to the URL.
    """
    _OfThisProcess.current = _connected(url, experiment) if url else _Nothing()
    return _OfThisProcess.current


def _connected(url: str, experiment: str) -> tune.Callback:
    try:
        logger = _Mlflow(tracking_uri=url, experiment_name=experiment)
    except (ImportError, RuntimeError) as error:
        raise UsageError("--mlflow-url needs MLflow: pip install 'patchwork-vision[mlflow]'") from error
    try:
        logger.setup()  # as Tune does, but before anything else
    except Exception as error:  # MLflow's own, or whatever its store or the network raises
        reason = str(error).partition("\n")[0]
        raise UsageError(f"MLflow cannot log to {without_passwords(url)}: {reason}") from error
    return logger


class _OfThisProcess:
    current: tune.Callback

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _current, ()


class _Mlflow(_OfThisProcess, MLflowLoggerCallback): ...


class _Nothing(_OfThisProcess, tune.Callback): ...


def _current() -> tune.Callback:
    return _OfThisProcess.current
