"""A sweep on a cluster of several nodes that know nothing of the project."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import run, started_without_the_project

from sweeps.results import load

START_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Head and two worker nodes, started by a Python that cannot import the project."""
    with started_without_the_project(tmp_path, START_CLUSTER) as address:
        yield address


def test_workers_get_the_projects_code_with_the_job(address: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--smoke", "--dataset", "shapes", "--name", "remote", env={"RAY_ADDRESS": address})
    assert done.returncode == 0, done.stdout + done.stderr
    trials = load(tmp_path / "results" / "patch_size" / "remote").trials
    assert len(trials) == 4 and (trials["status"] == "completed").all()
    too_large = run(tmp_path, "--smoke", "--dataset", "shapes", "--cpus-per-trial", "2", "--address", address)
    assert too_large.returncode == 2
    assert "the largest have 1 CPUs" in too_large.stderr
