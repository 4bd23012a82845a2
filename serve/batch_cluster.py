"""Connecting a batch job to Ray: one started here, a cluster by address, or that of the job it was submitted in."""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes.command import UsageError
from nodes.joining import HERE, check_reachable, packages, python_path
from serve.batch_flags import Flags

_NOISY_LOGGERS = ("ray", "ray.data")
# Blocks carry the numbers of shards and their counts, never pictures.
_OBJECT_STORE_BYTES = 150_000_000
# Ray reads these when its processes start.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_BACKEND_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or `RAY_ADDRESS`, or of the job this runs in), or start Ray on this machine.

    Elsewhere the workers receive the project's packages with the job; nothing is installed there by hand.

    Raises:
        UsageError: the cluster cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    address = address or os.environ.get("RAY_ADDRESS")
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        _start(ray.init, **quiet)
    elif address and address != "local":
        try:
            check_reachable(address)
        except OSError as error:
            raise UsageError(f"the Ray cluster at {address} cannot be joined: {error}") from error
        _start(ray.init, address, runtime_env={"py_modules": packages("serve")}, **quiet)
    else:
        path = {"env_vars": {"PYTHONPATH": python_path()}}
        _start(ray.init, object_store_memory=_OBJECT_STORE_BYTES, runtime_env=path, **HERE, **quiet)
    import ray.data

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many there are, and what each has."""

    number: int
    cpus: int
    gpus: float


def plan_workers(flags: Flags, num_shards: int) -> Workers:
    """What was asked for, else as many workers as there is work and room for now, which share all CPUs.

    Raises:
        UsageError: a worker fits on no node, nor on one that the autoscaler can add.
    """
    from nodes.growth import check_fits, has_gpus, room_for

    cpus = flags.cpus_per_worker or 1
    gpus = flags.gpus_per_worker
    if gpus is None:
        gpus = float(has_gpus())
    check_fits("worker", cpus, gpus)
    number = min(flags.num_workers or max(1, room_for(cpus, gpus)), num_shards)
    while flags.cpus_per_worker is None and room_for(cpus + 1, gpus) >= number:
        cpus += 1
    return Workers(number=number, cpus=cpus, gpus=gpus)


def _start(init: Callable[..., Any], *words: Any, **settings: Any) -> None:
    """Start or join Ray with a backend that does not write between our own lines; its log files are kept.

    The backend tells the standard error that it will be quiet, which is not wanted either.
    """
    level = os.environ.get(_BACKEND_LOG_LEVEL)
    os.environ.setdefault(_BACKEND_LOG_LEVEL, "fatal")
    kept = os.dup(2)
    with contextlib.closing(os.fdopen(kept, "wb")), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            init(*words, **settings)
        except Exception as error:  # Ray raises nothing narrower for a node that does not come up
            raise UsageError(f"Ray cannot be started or joined: {error}") from error
        finally:
            os.dup2(kept, 2)
            if level is None:  # programs that this process starts later, choose for themselves
                del os.environ[_BACKEND_LOG_LEVEL]
