"""The real `serve run`: from the file for production, and how it ends, on Ctrl-C or when a replica fails."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import pytest
import ray
import yaml
from click.globals import pop_context
from click.testing import CliRunner
from live import RAY_ENVIRONMENT, assert_problem, empty_serve, png, post

from benchmarks.ports import free_port
from core.segment.labelled import labelled_scene
from serve.run_command import end_well

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIENTS = 8
FIRST_SEED = 36_000_000


@contextmanager
def serve_run(
    log: Path, *words: str, application: str = "serve.config", environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a session of its own, so that all it started can be ended."""
    command = [str(Path(sys.executable).with_name("serve")), "run", application, *words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **RAY_ENVIRONMENT, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_what_is_in_hand_is_answered(checkpoint_folder: Path, tmp_path: Path) -> None:
    """With the models apart, where an answer takes many calls between replicas: none of them may go before the rest."""
    scenes = [labelled_scene(FIRST_SEED + number) for number in range(NUM_CLIENTS)]
    log = tmp_path / "log"
    with empty_serve() as url:
        # Into a Ray that is there already: with one of its own the command listens on port 8000.
        address = ray.get_runtime_context().gcs_address
        with serve_run(log, f"classifier={checkpoint_folder}", "stages=apart", "--address", address) as process:
            wait_until_ready(url, process, log)

            async def interrupt() -> list[list[httpx.Response]]:
                async with httpx.AsyncClient(timeout=60, base_url=url) as client:

                    async def ask(path: str, picture: bytes, **fields: list[str]) -> list[httpx.Response]:
                        # Over and over, so that the end finds something in hand, however long it takes to come.
                        responses: list[httpx.Response] = []
                        while not responses or responses[-1].status_code == httpx.codes.OK:
                            responses.append(await client.post(path, files={"image": picture}, data=fields))
                        return responses

                    tasks = [
                        asyncio.create_task(ask("/v1/segment", png(scene.image), prompts=list(scene.prompts)))
                        for scene in scenes
                    ]
                    tasks.append(asyncio.create_task(ask("/v1/classify", png(scenes[0].image))))
                    await asyncio.sleep(0.5)
                    assert not any(task.done() for task in tasks)
                    process.send_signal(signal.SIGINT)
                    return await asyncio.gather(*tasks)

            for *answered, refused in asyncio.run(interrupt()):
                assert answered
                problem = assert_problem(refused, 503, "unavailable")
                assert "ending" in problem["detail"] and refused.headers["retry-after"]
            assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


def test_before_it_has_started(checkpoint_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    # A Ray that it never comes to look for.
    with serve_run(log, f"classifier={checkpoint_folder}", "--address", "127.0.0.1:1") as process:
        give_up = time.monotonic() + 120
        while "Loading weights" not in log.read_text():
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("a replica failed"), 1), (KeyboardInterrupt(), 0)])
def test_a_replica_that_fails_fails_the_command(error: BaseException, code: int) -> None:
    @click.command()
    def run() -> None:
        # As `serve run` ends, whatever the reason.
        end_well(1)
        try:
            raise error
        except (Exception, KeyboardInterrupt):
            sys.exit()

    before = signal.getsignal(signal.SIGINT)
    try:
        result = CliRunner().invoke(run)
    finally:
        signal.signal(signal.SIGINT, before)
        # A context whose end raises stays click's current one, and later tests would take this for `serve run`.
        if click.get_current_context(silent=True):
            pop_context()
    assert result.exit_code == code
    assert ("did not start" in result.output) == bool(code)


def test_the_file_for_production_is_served_by_the_fastest_way_in(checkpoint_folder: Path, tmp_path: Path) -> None:
    """HAProxy before the ingress, and gRPC between the replicas, which changes how pictures travel."""
    config = yaml.safe_load((ROOT / "serve" / "production.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    (application,) = config["applications"]
    application["args"]["classifier"] = str(checkpoint_folder)
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(config))
    way_in = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    for name in ("METRICS", "STATS"):
        way_in[f"RAY_SERVE_HAPROXY_{name}_PORT"] = str(free_port())
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    scene = labelled_scene(FIRST_SEED, short_side=256)
    with serve_run(log, application=str(tmp_path / "app.yaml"), environment=way_in) as process:
        wait_until_ready(url, process, log)
        response = post(f"{url}/v1/classify", png(scene.image))
        assert response.status_code == 200 and len(response.json()["predictions"]) == 4
        response = post(f"{url}/v1/segment", png(scene.image), prompts=list(scene.prompts))
        assert response.status_code == 200
        assert [one["prompt"] for one in response.json()["results"]] == list(scene.prompts)
        assert any(one["found"] for one in response.json()["results"])
        assert_problem(post(f"{url}/v1/classify", bytes(21 * 2**20)), 413, "body-too-large")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 120
    while not answers(f"{url}/readyz"):
        assert process.poll() is None and time.monotonic() < give_up, log.read_text()
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
