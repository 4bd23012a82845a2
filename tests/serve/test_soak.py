"""Ten thousand hostile uploads against the real service: no fault of ours, and no growth."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hostile import Upload, classify_uploads, segment_uploads
from live import empty_serve
from ray import serve as ray_serve
from test_hostile_uploads import judge, send

from benchmarks.process_memory import family, usage_of
from serve.app import build
from serve.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUMBER = 10_000
AT_A_TIME = 8
# Serve's period and a little more: at each health check a replica gives back what it has freed.
HEALTH_CHECK_S = 12


@pytest.fixture(scope="module")
def url(checkpoint_folder: Path) -> Iterator[str]:
    # A small cache, which is full after the first few pictures.
    settings = Settings(classifier=checkpoint_folder, max_upload_mb=0.5, max_pixels=200_000, cache_mb=8)
    with empty_serve() as address:
        ray_serve.run(build(settings), name="default", route_prefix="/")
        yield address


def mixed(seed: int) -> Iterator[tuple[str, Upload]]:
    """To both routes, in turn, masks in every form."""
    streams = [("/v1/classify", classify_uploads(seed))]
    for number, mask_format in enumerate(("rle", "polygon", "png"), start=seed + 1):
        streams += [("/v1/segment", segment_uploads(number, mask_format)), ("/v1/classify", classify_uploads(number))]
    for path, stream in itertools.cycle(streams):
        yield path, next(stream)


def memory_mb() -> float:
    """Kept by both replicas, the ingress's with the classifier and the segmenter's, without what they share."""
    time.sleep(HEALTH_CHECK_S)
    replicas = [pid for pid, command in family().items() if command.startswith("ray::ServeReplica")]
    assert len(replicas) == 2
    return sum(usage_of(pid).private for pid in replicas)


async def send_all(url: str, uploads: Iterator[tuple[str, Upload]]) -> Counter[int]:
    statuses: Counter[int] = Counter()

    async def worker(client: httpx.AsyncClient) -> None:
        for path, upload in uploads:
            response = await send(client, path, upload)
            judge(upload, response)
            statuses[response.status_code] += 1

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(worker(client) for _ in range(AT_A_TIME)))
    return statuses


def test_ten_thousand(url: str) -> None:
    uploads = mixed(seed=10)
    # Until all that is loaded late has been, and the allocators have what they need.
    statuses = asyncio.run(send_all(url, itertools.islice(uploads, NUMBER // 5)))
    before = memory_mb()
    statuses += asyncio.run(send_all(url, itertools.islice(uploads, NUMBER - NUMBER // 5)))
    after = memory_mb()

    assert statuses.total() == NUMBER
    assert set(statuses) == {200, 400, 403, 413, 415, 422}
    assert min(statuses[200], statuses[400], statuses[422]) > NUMBER // 20
    assert after < 1.05 * before, f"{before:.0f} MB, then {after:.0f} MB"
    assert httpx.get(f"{url}/readyz").status_code == 200
