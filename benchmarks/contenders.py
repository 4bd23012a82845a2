"""The services that are measured, each started on a free port of the loopback address and ended afterwards."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.load import Body
from benchmarks.ports import free_port
from benchmarks.process_memory import family
from core.segment.demo_training import EVALUATION_SEED
from core.segment.options import SegmentOptions
from core.segment.scenes import draw_queries, generate_scene, render

ROOT = Path(__file__).resolve().parent.parent
# A Ray of its own, whatever else runs on this machine.
_RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ADDRESS": "local",
    "RAY_raylet_start_wait_time_s": "120",
}
_START_S = 900.0
_STOP_S = 60.0
_BOUNDARY = "patchwork-benchmark"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A picture, as a PNG file, with its prompts."""

    png: bytes
    prompts: tuple[str, ...]
    options: SegmentOptions

    def segment(self) -> Body:
        texts = [("prompts", text.encode()) for text in self.prompts]
        return _body([("image", self.png), *texts, ("max_instances", str(self.options.max_instances).encode())])

    def classify(self) -> Body:
        return _body([("image", self.png), ("top_k", b"5")])


def questions(first: int, number: int, side: int, options: SegmentOptions) -> list[Question]:
    """Generated scenes that were never trained on, with two prompts that name something and one that does not.

    No two scenes are equal, and none of one `first` is one of another: what a service remembers is of no use to it.
    """
    asked = []
    for seed in range(EVALUATION_SEED + first, EVALUATION_SEED + first + number):
        scene = generate_scene(seed)
        file = io.BytesIO()
        Image.fromarray(render(scene, side)[0]).save(file, "PNG")
        queries = draw_queries(scene, np.random.default_rng(seed), num_present=2, num_absent=1)
        prompts = tuple(query.text for query in queries)
        asked.append(Question(png=file.getvalue(), prompts=prompts, options=options))
    return asked


def _body(fields: Sequence[tuple[str, bytes]]) -> Body:
    parts = []
    for name, value in fields:
        file = b'; filename="scene.png"\r\nContent-Type: image/png' if name == "image" else b""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        parts.append(head + file + b"\r\n\r\n" + value + b"\r\n")
    content = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
    return Body(content=content, content_type=f"multipart/form-data; boundary={_BOUNDARY}")


@contextmanager
def plain() -> Iterator[str]:
    """FastAPI, uvicorn, and the documented use of both libraries."""
    with _uvicorn("benchmarks.plain_app:app") as url:
        yield url


@contextmanager
def bare() -> Iterator[str]:
    """Our HTTP application and the classifier in one process, without Ray."""
    with _uvicorn("benchmarks.bare_app:app") as url:
        yield url


@contextmanager
def litserve(max_batch_size: int = 16) -> Iterator[str]:
    """Our pipeline behind LitServe."""
    port = free_port()
    flags = ("--port", str(port), "--max-batch-size", str(max_batch_size))
    with _running([sys.executable, "-m", "benchmarks.litserve_app", *flags], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def patchwork(settings: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """`serve run serve.config` with these settings; its address, and the process that all of it descends from."""
    port = free_port()
    application = {
        "name": "default",
        "route_prefix": "/",
        "import_path": "serve.config",
        "args": dict(settings),
        "logging_config": {"enable_access_log": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        # By a file, as `serve run serve.config` itself always listens on port 8000. JSON is YAML.
        file = Path(folder) / "application.yaml"
        listen = {"host": "127.0.0.1", "port": port}
        file.write_text(json.dumps({"http_options": listen, "applications": [application]}))
        command = [str(Path(sys.executable).with_name("serve")), "run", str(file)]
        with _running(command, port, {**_RAY, **(environment or {})}) as process:
            yield f"http://127.0.0.1:{port}", process.pid


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """`name=value` words, as `serve run` takes them."""
    if wrong := [word for word in words if "=" not in word]:
        raise SystemExit(f"settings of the service are given as name=value, not {wrong[0]!r}")
    return dict(word.split("=", 1) for word in words)


@contextmanager
def _uvicorn(app: str) -> Iterator[str]:
    port = free_port()
    flags = ("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning")
    with _running([sys.executable, "-m", "uvicorn", app, *flags], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        # A session of its own, so that all it started can be ended with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started: dict[int, str] = {}
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/readyz", log)
            yield process
            started = family(process.pid)
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass  # killed below: what it was asked has been measured
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # Serve's HAProxy outlives it now and then, and holds ports that the next one wants.
            for pid, command in started.items():
                if "haproxy" in command and family(pid)[pid] == command:
                    os.kill(pid, signal.SIGKILL)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    give_up = time.monotonic() + _START_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > give_up:
            log.seek(0)
            raise SystemExit(f"the service did not start:\n{log.read().decode(errors='replace')[-3000:]}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
