"""Links from strangers: what is fetched, how much of it and how long, against real servers."""

import asyncio
import datetime
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fetch_support import ANY_PORT, PICTURE, Answer, fetch, names, open_fetcher, refusal, reply, serving

from serve import fetch_url
from serve.fetch_url import Address, Fetcher


def test_a_picture_is_fetched_by_the_address_that_was_checked(connects: list[Any]) -> None:
    async def run() -> None:
        async with serving(reply()) as server:
            fetcher = open_fetcher(pictures="127.0.0.1")  # a name that the system's resolver does not know
            assert await fetch(fetcher, f"http://pictures.test:{server.port}/a%20b?x=1#part") == PICTURE
            assert connects == [("127.0.0.1", server.port)]
            (request,) = server.requests
            head, *headers = request.strip().split("\r\n")
            assert head == "GET /a%20b?x=1 HTTP/1.1"
            sent = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in headers}
            assert sent["host"] == f"pictures.test:{server.port}"
            assert sent["accept-encoding"] == "identity"
            assert set(sent) == {"host", "user-agent", "accept", "accept-encoding", "connection"}

    asyncio.run(run())


@pytest.mark.parametrize("body", [b"", PICTURE, bytes(100_000)])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_up_to_the_limit(body: bytes, chunked: bool) -> None:
    framed = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    answer = reply(framed + b"0\r\n\r\n", Transfer_Encoding="chunked") if chunked else reply(body)

    async def run() -> None:
        async with serving(answer) as server:
            assert await fetch(open_fetcher(), f"http://127.0.0.1:{server.port}/") == body

    asyncio.run(run())


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_redirects_are_followed(status: str) -> None:
    async def run() -> None:
        async with serving(reply()) as target:
            location = f"http://next.test:{target.port}/picture"
            async with serving(reply(b"moved", status, Location=location)) as server:
                fetcher = open_fetcher(first="127.0.0.1", next="127.0.0.1")
                assert await fetch(fetcher, f"http://first.test:{server.port}/") == PICTURE
            assert target.requests[0].startswith("GET /picture ")

    asyncio.run(run())


def test_a_relative_redirect() -> None:
    async def answer(request: str, writer: asyncio.StreamWriter) -> None:
        moved = reply(b"", "302 Found", Location="../other?y=2")
        await (reply() if "/other?y=2 " in request else moved)(request, writer)

    async def run() -> None:
        async with serving(answer) as server:
            assert await fetch(open_fetcher(), f"http://127.0.0.1:{server.port}/a/b") == PICTURE

    asyncio.run(run())


@pytest.mark.parametrize(("times", "served"), [(3, True), (4, False)])
def test_at_most_three_redirects(times: int, served: bool) -> None:
    async def answer(request: str, writer: asyncio.StreamWriter) -> None:
        left = int(request.split()[1].strip("/"))
        await (reply(b"", "302 Found", Location=f"/{left - 1}") if left else reply())(request, writer)

    async def run() -> None:
        async with serving(answer) as server:
            url = f"http://127.0.0.1:{server.port}/{times}"
            if served:
                assert await fetch(open_fetcher(), url) == PICTURE
            else:
                assert (await refusal(open_fetcher(), url)).kind == "failed"
            assert server.connections == 4

    asyncio.run(run())


async def endless(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(50_000))
        await writer.drain()


def test_an_endless_body_is_cut_off() -> None:
    async def run() -> None:
        async with serving(endless) as server:
            assert (await refusal(open_fetcher(), f"http://127.0.0.1:{server.port}/")).kind == "too_large"

    asyncio.run(run())


def test_a_length_that_is_too_large_is_believed() -> None:
    """Nothing of the body is waited for."""

    async def answer(request: str, writer: asyncio.StreamWriter) -> None:
        await reply(b"", Content_Length="100001")(request, writer)
        await writer.drain()
        await asyncio.sleep(30)

    async def run() -> None:
        async with serving(answer) as server:
            error = await refusal(open_fetcher(), f"http://127.0.0.1:{server.port}/", timeout_s=20)
            assert error.kind == "too_large"
            assert "100,000 bytes" in str(error)

    asyncio.run(run())


def test_a_compressed_body_is_refused_unopened() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    assert len(bomb) < 100_000

    async def run() -> None:
        async with serving(reply(bomb, Content_Encoding="gzip")) as server:
            assert (await refusal(open_fetcher(), f"http://127.0.0.1:{server.port}/")).kind == "failed"
        # Not declared, it is passed on as it came, and is no picture.
        async with serving(reply(bomb)) as server:
            assert await fetch(open_fetcher(), f"http://127.0.0.1:{server.port}/") == bomb

    asyncio.run(run())


def trickle(first: bytes, drop: bytes) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.02)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        trickle(b"", b""),
        trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"x"),
        trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silent", "headers", "body", "chunks", "interim answers"],
)
def test_a_slow_server_costs_no_more_than_the_time_allowed(answer: Answer) -> None:
    async def run() -> None:
        async with serving(answer) as server:
            started = time.monotonic()
            error = await refusal(open_fetcher(), f"http://127.0.0.1:{server.port}/", timeout_s=0.5)
            assert error.kind == "timeout"
            assert 0.4 < time.monotonic() - started < 3

    asyncio.run(run())


def test_redirects_share_the_time() -> None:
    async def answer(request: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await reply(b"", "302 Found", Location="/on")(request, writer)

    async def run() -> None:
        async with serving(answer) as server:
            error = await refusal(open_fetcher(), f"http://127.0.0.1:{server.port}/", timeout_s=0.5)
            assert error.kind == "timeout"
            assert server.connections == 2

    asyncio.run(run())


def test_a_slow_name_server_costs_no_more_than_the_time_allowed() -> None:
    async def never(host: str) -> Sequence[Address]:
        await asyncio.sleep(60)
        return []

    assert asyncio.run(refusal(Fetcher(resolve=never), "http://slow.test/", timeout_s=0.1)).kind == "timeout"


def test_names_that_are_slow_to_look_up_hold_up_no_others_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release, look_up = threading.Event(), socket.getaddrinfo

    def slow(host: bytes, *words: Any, **options: Any) -> Any:
        if host.startswith(b"slow"):
            release.wait(60)
        return look_up("127.0.0.1", *words, **options)

    async def given_up(count: int) -> None:
        """By their requests; the threads go on."""
        links = (f"http://slow{number}.test/" for number in range(count))
        errors = await asyncio.gather(*(refusal(Fetcher(), link, timeout_s=0.2) for link in links))
        assert {str(error) for error in errors} == {"The picture did not arrive from its server in 0.2 s."}

    async def run() -> None:
        await given_up(20)
        assert (await refusal(Fetcher(), "http://swift.test/")).kind == "forbidden"  # its address was found
        await given_up(fetch_url._NUM_RESOLVERS - 20)
        error = await refusal(Fetcher(), "http://swift.test/")
        assert error.kind == "timeout" and "Too many links wait" in str(error)
        release.set()
        while (error := await refusal(Fetcher(), "http://swift.test/")).kind != "forbidden":
            await asyncio.sleep(0.01)

    monkeypatch.setattr("socket.getaddrinfo", slow)
    try:
        asyncio.run(run())
    finally:
        release.set()


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"", "404 Not Found"),
        reply(b"", "500 Internal Server Error"),
        reply(PICTURE, "206 Partial Content"),
        reply(b"", "302 Found"),
        reply(b"", "304 Not Modified"),
        reply(b"short", Content_Length="50"),
        reply(b"not hex\r\n", Transfer_Encoding="chunked"),
        reply(PICTURE, Content_Length="-5"),
        reply(b"", X="y" * 200_000),
        reply(b"", "2OO 0K"),
    ],
    ids=["404", "500", "206", "302 to nowhere", "304", "cut short", "bad chunk", "bad length", "headers", "not HTTP"],
)
def test_the_servers_faults(answer: Answer) -> None:
    async def run() -> None:
        async with serving(answer) as server:
            error = await refusal(open_fetcher(fails="127.0.0.1"), f"http://fails.test:{server.port}/")
            assert error.kind == "failed"
            assert "127.0.0.1" not in str(error)

    asyncio.run(run())


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert asyncio.run(refusal(open_fetcher(), f"http://127.0.0.1:{port}/")).kind == "failed"
    assert asyncio.run(refusal(open_fetcher(), "http://unknown.test/")).kind == "failed"


def certificate(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server that is called `name`, and for a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + signed)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=signed.decode())


def test_the_certificate_must_be_the_names(tmp_path: Path) -> None:
    theirs, ours = certificate("pictures.test", tmp_path)
    asked: list[str | None] = []
    theirs.sni_callback = lambda connection, name, context: asked.append(name)

    async def run() -> None:
        async with serving(reply(), tls=theirs) as server:
            fetcher = Fetcher(
                resolve=names(pictures="127.0.0.1", other="127.0.0.1"),
                is_allowed=lambda address: address.is_loopback,
                ports=ANY_PORT,
                tls=lambda: ours,
            )
            assert await fetch(fetcher, f"https://pictures.test:{server.port}/") == PICTURE
            assert asked == ["pictures.test"]
            for host in ("other.test", "127.0.0.1"):
                assert (await refusal(fetcher, f"https://{host}:{server.port}/")).kind == "failed"
            assert len(server.requests) == 1

    asyncio.run(run())


def test_a_certificate_of_ones_own_making_is_refused(tmp_path: Path) -> None:
    theirs, _ = certificate("pictures.test", tmp_path)

    async def run() -> None:
        async with serving(reply(), tls=theirs) as server:
            fetcher = open_fetcher(pictures="127.0.0.1")
            assert (await refusal(fetcher, f"https://pictures.test:{server.port}/")).kind == "failed"
            assert server.requests == []

    asyncio.run(run())
