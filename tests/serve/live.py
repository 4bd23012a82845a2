"""A real Ray Serve over a real connection, for the tests that need one."""

import asyncio
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve as ray_serve

from benchmarks.ports import free_port

RAY_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}


@contextmanager
def empty_serve(**options: Any) -> Iterator[str]:
    """An empty Serve on a Ray of its own; its address."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=100_000_000,
            include_dashboard=False,
            log_to_driver=False,
            **options,
        )
        try:
            port = free_port()
            ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
            ray_serve.shutdown()
        finally:
            ray.shutdown()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def post(url: str, data: bytes, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return httpx.post(url, files={"image": data}, data=fields, headers=headers, timeout=60)


def post_together(
    url: str, requests: Sequence[tuple[bytes, dict[str, Any]]], *, busy: bool = False, **options: Any
) -> list[httpx.Response]:
    """All at once, the answers in the order of the requests; `busy`: with a client that has other things to do, too."""

    async def send() -> list[httpx.Response]:
        other = asyncio.create_task(work()) if busy else None
        limits = httpx.Limits(max_connections=len(requests))
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            sent = [client.post(url, files={"image": data}, data=fields, **options) for data, fields in requests]
            try:
                return list(await asyncio.gather(*sent))
            finally:
                if other is not None:
                    other.cancel()

    async def work() -> None:
        while True:
            time.sleep(0.03)
            await asyncio.sleep(0)

    return asyncio.run(send())


def assert_problem(response: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:patchwork:problem:{name}"
    assert body["status"] == status
    assert body["title"]
    assert "Traceback" not in response.text
    return body
