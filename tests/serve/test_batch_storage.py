import os
import signal
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper

from serve.batch_storage import Store, read_bytes, resolve


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as listening:
        Thread(target=listening.serve_forever).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("status", "error"), [(401, PermissionError), (403, PermissionError), (404, FileNotFoundError), (500, OSError)]
)
def test_what_a_web_server_refuses_is_an_error_of_storage(server: str, status: int, error: type[OSError]) -> None:
    fs, path = resolve(f"{server}/{status}")
    with pytest.raises(OSError) as raised:
        read_bytes(fs, path)
    assert type(raised.value) is error


class SlowStore(ArrowFSWrapper):
    """Not local for our code, and interrupted by Ctrl-C while a file is open."""

    def open(self, *args: Any, **options: Any) -> Any:
        file = super().open(*args, **options)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        return file


def test_ctrl_c_during_an_upload_leaves_the_whole_file(tmp_path: Path) -> None:
    store = Store(SlowStore(pyarrow.fs.LocalFileSystem()), str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        store.write("batch.json", b"all of it")
    assert (tmp_path / "batch.json").read_bytes() == b"all of it"
