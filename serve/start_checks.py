"""What would keep the service from starting on this machine, found before Ray starts: one sentence, exit code 1."""

import contextlib
import os
import socket
from pathlib import Path

import click

from serve.settings import StartError

# `serve run` with an import path listens here, and cannot be told otherwise.
_ADDRESS = ("127.0.0.1", 8000)
_CGROUP = Path("/sys/fs/cgroup")
# What a process of ours takes beside weights and cache: Python, PyTorch, Ray.
_BYTES_PER_PROCESS = 500_000_000


def check_machine(*, num_cpus: float, num_gpus: float, num_bytes: int, num_processes: int) -> None:
    """Compare what the replicas need with what is here, if here is where they will run.

    Under `serve run` without an address they will; on a cluster nodes may come when they are needed, so nothing is
    checked there.

    Args:
        num_bytes: of weights and caches, of all replicas together.

    Raises:
        StartError: there are too few CPUs or GPUs, too little memory, or the port is taken.
    """
    if not is_local_run():
        return
    _check_port()
    cpus = count_cpus()
    if num_cpus > cpus:
        raise StartError(
            f"the replicas need {num_cpus:g} CPUs, this machine has {cpus}; lower replicas or cpus_per_replica"
        )
    if num_gpus:
        import torch

        if num_gpus > torch.cuda.device_count():
            raise StartError(
                f"the replicas need {num_gpus:.2g} GPUs, this machine has {torch.cuda.device_count()}; lower replicas"
            )
    needed = num_bytes + num_processes * _BYTES_PER_PROCESS
    free = _free_memory()
    if free is not None and needed > free:
        raise StartError(
            f"the models need about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; lower "
            "cache_mb or replicas, or take a smaller preset"
        )


def count_cpus() -> int:
    """Of this machine, or its container, as Ray counts them when it starts."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True))


def is_local_run() -> bool:
    """Whether this is `serve run` without the address of a cluster: here is where the replicas will be."""
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "run":
        return False
    address = context.params.get("address") or os.environ.get("RAY_ADDRESS")
    return address in (None, "", "local")


def _free_memory() -> int | None:
    """Bytes that are free here, within the container's limit if there is one; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        free = fields["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" if there is no limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read count as used, and make way for what needs the memory.
        used -= int(kinds.get("inactive_file", 0)) + int(kinds.get("active_file", 0))
        free = min(free, limit - used)
    return max(free, 0)


def _check_port() -> None:
    with socket.socket() as listener:
        # As a server does it: connections that are just closing are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(_ADDRESS)
        except OSError as error:
            host, port = _ADDRESS
            raise StartError(
                f"{host}:{port} is taken by another program; end it, or choose another port under http_options in a "
                "copy of serve/production.yaml, and run that"
            ) from error
