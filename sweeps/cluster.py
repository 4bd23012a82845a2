"""Connecting to Ray: one started here, a cluster by address, or the cluster that a submitted job runs on."""

import logging
import os
from pathlib import Path
from typing import Any

from nodes.command import UsageError
from nodes.joining import HERE, check_reachable, packages, python_path

_NOISY_LOGGERS = ("ray", "ray.tune", "ray.train", "ray.air", "ray.data")
_SECONDS_TO_ANSWER = 30.0
_NODES_ASKED = 16
# How far the cluster may grow is not known. Of a search, more at once would be chosen knowing less.
_AT_ONCE_WHERE_IT_GROWS = 8

# Ray reads these when its processes start. Tune's own tables are replaced by `sweeps.progress`.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

# PyTorch would start a pool of compiler processes in every trial, and trials without a GPU would all take the first.
_WORKER_ENVIRONMENT = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or `RAY_ADDRESS`, or of the job this runs in), or start Ray on this machine.

    Elsewhere the workers receive the project's packages with the job; nothing is installed there by hand.

    Raises:
        UsageError: the cluster cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    address = address or os.environ.get("RAY_ADDRESS")
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # a submitted job, whose working folder the workers have
        ray.init(runtime_env={"env_vars": _WORKER_ENVIRONMENT}, **quiet)
    elif address and address.startswith("ray://"):
        raise UsageError(
            f"{address} is for Ray Client, under which a sweep could not be watched from here: give HOST:PORT of the "
            "cluster's head, or submit the sweep as a job"
        )
    elif address and address != "local":
        try:
            check_reachable(address)
            ray.init(address, runtime_env={"py_modules": packages("sweeps"), "env_vars": _WORKER_ENVIRONMENT}, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"the Ray cluster at {address} cannot be joined: {error}") from error
    else:
        ray.init(runtime_env={"env_vars": {**_WORKER_ENVIRONMENT, "PYTHONPATH": python_path()}}, **HERE, **quiet)


def check_sees(folder: Path) -> None:
    """Refuse a results folder that only this machine has: trials elsewhere could keep nothing in it.

    Raises:
        UsageError: a node that would run trials does not see the folder.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [
        node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0)
    ]
    if not others:
        return
    looking = {
        ray.remote(_is_folder)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(str(folder)): node["NodeName"]
        for node in others[:_NODES_ASKED]  # they are made alike
    }
    answered, _ = ray.wait(list(looking), num_returns=len(looking), timeout=_SECONDS_TO_ANSWER)
    for answer in answered:
        try:
            sees = ray.get(answer)
        except RayError:  # the node has gone since; trials on it would begin again elsewhere
            continue
        if not sees:
            raise UsageError(
                f"node {looking[answer]} of the cluster does not see {folder}; give a --storage that all nodes reach, "
                "a shared folder or a URI such as s3://bucket/folder"
            )


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()


def concurrent_trials(cpus: int, gpus: float) -> int:
    """How many trials fit on the nodes that are there now; at least 1, and where nodes are added, a few."""
    from nodes.growth import has_autoscaler, room_for

    return max(room_for(cpus, gpus), _AT_ONCE_WHERE_IT_GROWS if has_autoscaler() else 1)
