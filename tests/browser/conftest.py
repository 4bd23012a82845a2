"""The service as `serve run` starts it, with the demo weights, and a real browser before it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from browsing import API_KEY, MAX_PIXELS, TIMEOUT_MS
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from tiny_checkpoint import write_tiny_checkpoint

from benchmarks.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("PATCHWORK_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
CHROMIUM_WORDS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service; below `/locked/` once more, where it wants an API key."""
    port = free_port()
    classifier = write_tiny_checkpoint(tmp_path_factory.mktemp("classifier"))
    args = {"classifier": str(classifier), "max_pixels": MAX_PIXELS, "cpus_per_replica": 1}
    app = {"import_path": "serve.config", "args": args}
    locked = {"runtime_env": {"env_vars": {"PATCHWORK_API_KEYS": API_KEY}}}
    folder = tmp_path_factory.mktemp("service")
    (folder / "apps.yaml").write_text(
        yaml.safe_dump(
            {
                "http_options": {"host": "127.0.0.1", "port": port},
                "applications": [
                    {"name": "open", "route_prefix": "/", **app},
                    {"name": "locked", "route_prefix": "/locked", **app, **locked},
                ],
            }
        )
    )
    command = [str(Path(sys.executable).with_name("serve")), "run", str(folder / "apps.yaml")]
    # On a busy machine the proxy is not ready within the few seconds that Serve gives it.
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
    environment = {**os.environ, **patience, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w+") as log:
        # A session of its own, so that all it started can be ended.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for prefix in ("", "/locked"):
                _wait_until_ready(f"http://127.0.0.1:{port}{prefix}/readyz", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 400  # two applications start at once, beside whatever other tests run
    while True:
        assert process.poll() is None and time.monotonic() < give_up, log.read_text()
        try:
            if httpx.get(address, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)


# Not for the session: Playwright keeps an event loop running in this thread, where other tests want to run theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"there is no browser at {CHROMIUM}: install chromium, or name one in PATCHWORK_CHROMIUM")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_WORDS)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    # Without motion: what runs while an answer is waited for would take time from the service.
    context = browser.new_context(viewport={"width": 1000, "height": 760}, reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, url: str) -> Iterator[Page]:
    """The page, opened. It must not have complained of anything in the end: no error, and no policy broken."""
    page = context.new_page()
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # A refusal by the service is an answer; the browser notes it as well.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", listen)
    page.goto(url)
    page.get_by_role("button", name="Sample picture rings").wait_for()
    yield page
    assert not complaints
