"""A sweep on a cluster that has no worker yet: Ray's own autoscaler adds nodes, simulated on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from support import run

from benchmarks.ports import free_port
from benchmarks.process_memory import family
from sweeps.results import load

HEAD_ID = "f" * 51 + "00000"
NODE_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}


def autoscaling(address: str) -> dict[str, object]:
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": address,
    }
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    starts = ("head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "growing",
        "max_workers": 1,
        "provider": provider,
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",
        "available_node_types": NODE_TYPES,
        "file_mounts": {},
        "cluster_synced_files": [],
        **{name: [] for name in (*lists, *starts)},
    }


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A head without CPUs, and an autoscaler, as `ray up` starts them."""
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "autoscaling.yaml"
    config.write_text(yaml.safe_dump(autoscaling(address)))
    ray = Path(sys.executable).with_name("ray")
    words = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
    words += ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", f"--autoscaling-config={config}"]
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    with (tmp_path / "head.txt").open("w") as log:
        head = subprocess.Popen([ray, *words], env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            wait_until_it_runs(head, tmp_path / "head.txt")
            yield address
        finally:
            started = family(head.pid)
            head.send_signal(signal.SIGTERM)
            head.wait(60)
            for pid, command in started.items():  # the nodes that were added outlive it
                if family(pid).get(pid) == command:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def wait_until_it_runs(head: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while "block forever" not in log.read_text():
        assert head.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.slow
def test_a_sweep_wakes_the_workers_of_a_cluster_that_has_none(address: str, tmp_path: Path) -> None:
    words = ("--smoke", "--dataset", "shapes", "--address", address)
    too_large = run(tmp_path, *words, "--cpus-per-trial", "3")
    assert too_large.returncode == 2, too_large.stdout + too_large.stderr
    assert "a trial asks for 3 CPUs" in too_large.stderr
    done = run(tmp_path, *words, "--name", "woken")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = load(tmp_path / "results" / "patch_size" / "woken").trials
    assert len(trials) == 4 and (trials["status"] == "completed").all()
