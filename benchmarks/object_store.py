"""An S3 server in this process, with one bucket; programs started from it find it by their environment."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "lab"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """No line for each request."""


class ObjectStore:
    """moto's S3. What it holds outlives an outage.

    Attributes:
        requests: how many there were, by method.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self.begin()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def client(self) -> Any:
        return boto3.client("s3")

    def begin(self) -> None:
        """Answer, on the same port as before."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet)
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def end(self) -> None:
        """From now on connections are refused."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests[environ["REQUEST_METHOD"]] += 1
        return self._app(environ, start_response)

    def upload(self, folder: Path, prefix: str) -> None:
        """All files of a folder."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder)}")

    def download(self, prefix: str, folder: Path) -> None:
        """All that is below a prefix."""
        for name in self.names(prefix):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(BUCKET, f"{prefix}/{name}", str(file))

    def names(self, prefix: str) -> list[str]:
        """What is below a prefix, without it; no markers of folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return [key.removeprefix(f"{prefix}/") for key in keys if not key.endswith("/")]


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """With one empty bucket, `s3://lab`."""
    store = ObjectStore()
    words = {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",  # boto3's name for it
    }
    try:
        with mock.patch.dict(os.environ, words):
            store.client.create_bucket(Bucket=BUCKET)
            yield store
    finally:
        store.end()
