"""Hosts with addresses and networks of their own on this machine, and a Ray cluster of them.

Linux's network namespaces, behind one switch that leads nowhere else; making them needs root.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_RAY_PORT = 6379
_SECONDS_TO_START = 120


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """A network namespace with one link to the switch."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """So that it is run there."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Nothing reaches it any more, and it reaches nothing; what runs on it goes on."""
        _ip("-n", self.name, "link", "set", "eth0", "down")


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Some that reach each other and nothing else; the test is skipped where they cannot be made."""
    switch = f"patchwork-{os.getpid()}"
    made: list[Host] = []
    if not shutil.which("ip") or subprocess.run(["ip", "netns", "add", switch], capture_output=True).returncode:
        pytest.skip("hosts of their own need root, network namespaces and iproute2")
    try:
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number in range(count):
            host = Host(f"{switch}-{number}", f"10.99.0.{number + 1}")
            port = f"port{number}"
            _ip("netns", "add", host.name)
            made.append(host)
            _ip("link", "add", "eth0", "netns", host.name, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", link, "up")
        yield made
    finally:
        for host in made:
            _ip("netns", "delete", host.name)
        _ip("netns", "delete", switch)


@contextmanager
def ray_cluster(num_workers: int) -> Iterator[tuple[Host, list[Host], str]]:
    """A head without CPUs, workers with a CPU each, and the cluster's address; they share this machine's files."""
    ray = str(Path(sys.executable).with_name("ray"))
    with hosts(1 + num_workers) as (head, *workers), tempfile.TemporaryDirectory(prefix="ray-") as folder:
        address = f"{head.address}:{_RAY_PORT}"
        start = (ray, "start", "--block", "--disable-usage-stats", "--object-store-memory", "80000000")
        as_head = ("--head", "--port", str(_RAY_PORT), "--num-cpus", "0", "--include-dashboard", "false")
        as_worker = ("--address", address, "--num-cpus", "1")
        told = Path(folder) / "ray.txt"
        with told.open("w") as log, contextlib.ExitStack() as started:
            # One after the other: on files that they share they would take the same names.
            for number, host in enumerate((head, *workers), start=1):
                words = (*as_head, "--temp-dir", folder) if host is head else as_worker
                command = host.command(*start, "--node-ip-address", host.address, *words)
                process = subprocess.Popen(command, stdout=log, stderr=log)
                started.callback(process.wait)
                started.callback(_end_all, host)
                _wait(head, address, number, told)
            yield head, workers, address


def _wait(head: Host, address: str, num_nodes: int, told: Path) -> None:
    """Until so many nodes are alive. told: what Ray has said."""
    program = f"import ray; ray.init({address!r}, log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        asked = subprocess.run(head.command(sys.executable, "-c", program), capture_output=True, text=True)
        if asked.stdout.strip() == str(num_nodes):
            return
        assert time.monotonic() < deadline, asked.stdout + asked.stderr + told.read_text()
        time.sleep(1)


def _end_all(host: Host) -> None:
    """End what still runs there."""
    listed = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout
    for pid in map(int, listed.split()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
