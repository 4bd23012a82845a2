"""Sweeps on a cluster of several nodes that know nothing of the project."""

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import ROOT, run, started_without_the_project

from benchmarks.ports import free_port
from sweeps.results import load

START_CLUSTER = """
import sys
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster
port, temp_dir = int(sys.argv[1]), sys.argv[2]
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "dashboard_agent_listen_port": 0,  # its default is one fixed port, which another head here may hold
        "temp_dir": temp_dir,
    },
)
write_ray_address(cluster.address, temp_dir)
for number in range(2):
    # A folder of its own for what jobs bring, as a machine of its own has: a node unpacks over what is there.
    cluster.add_node(num_cpus=1, include_dashboard=False, runtime_env_dir_name=f"runtime_resources_{number}")
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class Addresses(NamedTuple):
    """Where a cluster takes drivers, and where jobs."""

    drivers: str
    jobs: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A head without CPUs and two workers, started by a Python that cannot import the project."""
    port = free_port()
    # Not pytest's: the paths of Ray's sockets may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        hidden = tmp_path_factory.mktemp("cluster")
        with started_without_the_project(hidden, START_CLUSTER, str(port), folder) as address:
            jobs = f"http://127.0.0.1:{port}"
            wait_until_answered(f"{jobs}/api/version")
            yield Addresses(address, jobs)


def wait_until_answered(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


def submit(address: str, *entrypoint: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, again while the nodes' agents are still starting, as Ray asks for then."""
    ray = Path(sys.executable).with_name("ray")
    words = [str(ray), "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *entrypoint]
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def test_workers_get_the_projects_code_with_the_job(cluster: Addresses, tmp_path: Path) -> None:
    done = run(tmp_path, "--smoke", "--dataset", "shapes", "--name", "remote", env={"RAY_ADDRESS": cluster.drivers})
    assert done.returncode == 0, done.stdout + done.stderr
    trials = load(tmp_path / "results" / "patch_size" / "remote").trials
    assert len(trials) == 4 and (trials["status"] == "completed").all()
    too_large = run(tmp_path, "--smoke", "--dataset", "shapes", "--cpus-per-trial", "2", "--address", cluster.drivers)
    assert too_large.returncode == 2
    assert "the largest have 1 CPUs" in too_large.stderr


def test_a_submitted_sweep_runs_on_workers_that_have_only_its_dependencies(cluster: Addresses, tmp_path: Path) -> None:
    sweep = ("python", "sweeps/patch_size.py", "--smoke", "--dataset", "shapes", "--name", "remote")
    done = submit(cluster.jobs, *sweep, "--storage", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Job '\w+' succeeded", done.stdout + done.stderr)
    trials = load(tmp_path / "patch_size" / "remote").trials
    assert len(trials) == 4 and (trials["status"] == "completed").all()
