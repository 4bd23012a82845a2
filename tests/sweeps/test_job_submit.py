"""`ray job submit` of a sweep to a cluster whose Python lacks the project's code."""

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, free_port, started_without_the_project

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
print("ready", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def short_folder() -> Iterator[str]:
    """For Ray's sockets, whose paths may have 107 characters; pytest's are longer."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def dashboard(tmp_path: Path, short_folder: str) -> Iterator[str]:
    """The address that takes jobs, of a head without CPUs and two workers."""
    port = free_port()
    with started_without_the_project(tmp_path, START_CLUSTER, str(port), short_folder) as line:
        assert line == "ready"
        address = f"http://127.0.0.1:{port}"
        wait_until_answered(f"{address}/api/version")
        yield address


def wait_until_answered(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


def submit(dashboard: str, *entrypoint: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, again while the nodes' agents are still starting, as Ray asks for then."""
    ray = Path(sys.executable).with_name("ray")
    words = [str(ray), "job", "submit", "--address", dashboard, "--working-dir", str(ROOT), "--", *entrypoint]
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def test_a_submitted_sweep_runs_on_workers_that_have_only_its_dependencies(dashboard: str, tmp_path: Path) -> None:
    sweep = ("python", "sweeps/patch_size.py", "--smoke", "--dataset", "shapes", "--name", "remote")
    done = submit(dashboard, *sweep, "--storage", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Job '\w+' succeeded", done.stdout + done.stderr)
    trials = load(tmp_path / "patch_size" / "remote").trials
    assert len(trials) == 4 and (trials["status"] == "completed").all()
