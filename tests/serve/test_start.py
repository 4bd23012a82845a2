"""Starts that cannot succeed: the real `serve run`, up to where Ray would start, says one sentence and fails."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from live import RAY_ENVIRONMENT
from ray.serve.scripts import cli

from core.carried import CARRIED_CLASSIFIER
from serve.app import _Plan, build
from serve.settings import Settings, StartError
from serve.start_checks import _free_memory, check_machine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port_8000_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.start_checks._check_port", lambda: None)


def serve_run(*words: str, **environment: str) -> Result:
    result = CliRunner().invoke(cli, ["run", "serve.config", *words], env={**RAY_ENVIRONMENT, **environment})
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    return result


def sentence(result: Result) -> str:
    (line,) = re.findall(r"^Error: (.*)$", result.output, re.MULTILINE)
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["classifier=nowhere"], "nowhere is not a checkpoint folder"),
        (["classifier=nowhere", "batch=3"], "there is no setting 'batch'"),
        (["max_pixels=many"], "max_pixels=many: "),
        (["clipseg=no/such-model"], "no CLIPSeg checkpoint can be loaded from 'no/such-model'"),
        (["sam2=no/such-model"], "there is no folder or file 'no/such-model'"),
        (["calibration=nowhere.json"], "nowhere.json cannot be read"),
        (["device=cuda"], "device: "),
        (["replicas=500"], "the replicas need 500 CPUs, this machine has"),
        (["cache_mb=1000000"], "GiB of memory"),
    ],
)
def test_what_is_wrong_is_named(
    port_8000_is_free: None, checkpoint_folder: Path, words: list[str], expected: str
) -> None:
    if not any(word.startswith("classifier") for word in words):
        words = [f"classifier={checkpoint_folder}", *words]
    assert expected in sentence(serve_run(*words, HF_HUB_OFFLINE="1"))


def test_a_cluster_may_have_the_gpus_that_the_machine_of_the_start_lacks(checkpoint_folder: Path) -> None:
    assert not torch.cuda.is_available()
    build(Settings(classifier=checkpoint_folder, device="cuda"))


def test_serve_lets_more_through_to_the_ingress_than_it_takes(checkpoint_folder: Path) -> None:
    settings = Settings(classifier=checkpoint_folder, max_queued=5000)
    ingress: Any = build(settings)._bound_deployment
    assert ingress.max_ongoing_requests > 2 * settings.max_in_hand


def test_a_key_that_nobody_should_use(checkpoint_folder: Path) -> None:
    said = sentence(serve_run(f"classifier={checkpoint_folder}", PATCHWORK_API_KEYS="secret"))
    assert "PATCHWORK_API_KEYS: key 1 is not usable" in said and "secret" not in said


def test_a_copy_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "cifar10"
    monkeypatch.setattr("serve.app.CARRIED_CLASSIFIER", missing)
    assert "lacks the weights that it should carry" in sentence(serve_run(f"classifier={missing}"))
    assert CARRIED_CLASSIFIER.parts[-3:] == ("core", "weights", "cifar10")


def test_the_cpus_of_a_container_are_counted_as_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 3.0)
    monkeypatch.delenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", raising=False)
    assert _Plan.of(Settings()).threads == 3
    monkeypatch.setattr("serve.start_checks.is_local_run", lambda: True)
    monkeypatch.setattr("serve.start_checks._check_port", lambda: None)
    with pytest.raises(StartError, match="need 4 CPUs, this machine has 3"):
        check_machine(num_cpus=4, num_gpus=0, num_bytes=0, num_processes=0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_that_were_read_leave_the_memory_of_a_container_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serve.start_checks._CGROUP", tmp_path)
    for name, text in {
        "memory.max": "10000\n",
        "memory.current": "9000\n",
        "memory.stat": "anon 1000\nfile 8000\ninactive_file 5000\nactive_file 2000\nshmem 1000\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert _free_memory() == 8000


@pytest.fixture
def taken_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr("serve.start_checks._ADDRESS", listener.getsockname())
        yield listener.getsockname()[1]


def test_a_port_that_is_taken(taken_port: int, checkpoint_folder: Path) -> None:
    said = sentence(serve_run(f"classifier={checkpoint_folder}"))
    assert said.startswith(f"127.0.0.1:{taken_port} is taken by another program")


def test_as_a_process_from_another_folder(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.config", "classifier=nowhere"]
    environment = {**os.environ, **RAY_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if "INFO" not in line]
    assert line.startswith(f"Error: classifier: {tmp_path / 'nowhere'} is not a checkpoint folder")
