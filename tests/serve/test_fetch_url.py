"""Links from strangers: what is fetched, and what must not even be connected to, against real servers that count."""

import ast
import asyncio
import datetime
import gzip
import ipaddress
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve import fetch_url
from serve.fetch_url import Address, Fetcher, FetchError, is_public

ROOT = Path(__file__).resolve().parents[2]
PICTURE = bytes(range(256)) * 8
ANY_PORT = range(1, 65536)

FORBIDDEN = [
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1"),
    *("100.64.0.1", "100.127.255.254", "100.100.100.200"),  # carriers' own; the last is Alibaba's metadata
    *("169.254.1.1", "169.254.169.254", "169.254.170.2", "168.63.129.16"),
    *("192.0.0.1", "192.0.0.9", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.254"),
    *("198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254"),
    *("ff02::1", "ff0e::1", "100::1", "2001:db8::1", "2001:2::1", "2001:10::1", "3fff::1", "5f00::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:168.63.129.16"),
    *("::127.0.0.1", "::10.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::224.0.0.1", "64:ff9b:1::8.8.8.8"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1"),  # 6to4
    *("2001:0:808:808:0:0:80ff:fffe", "2001:0:7f00:1::1"),  # Teredo
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"),
    *("192.167.1.1", "198.17.0.1", "168.63.129.15", "223.255.255.254"),
    *("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::1"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A web server of one answer, which counts who connects and keeps what they asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.port = 0
        self.connections = 0
        self.requests: list[str] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            self.requests.append(request)
            await self._answer(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side had read enough: what happens is asserted there
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    answer: Answer, hosts: Sequence[str] = ("127.0.0.1",), port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(answer)
    async with await asyncio.start_server(server.accept, list(hosts), port, ssl=tls) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield server


def reply(body: bytes = PICTURE, status: str = "200 OK", **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    return answer


def names(**answers: str | Sequence[str]) -> Callable[[str], Awaitable[Sequence[Address]]]:
    """A resolver that knows these names, `a` as `a.test`, and takes one answer a question where there are several."""
    left = {f"{name}.test": [given] if isinstance(given, str) else list(given) for name, given in answers.items()}

    async def resolve(host: str) -> Sequence[Address]:
        if host not in left:
            raise socket.gaierror("no such name")
        answer = left[host].pop(0) if len(left[host]) > 1 else left[host][0]
        return [ipaddress.ip_address(one) for one in answer.split()]

    return resolve


def open_fetcher(*allowed: str, **answers: str | Sequence[str]) -> Fetcher:
    """Lets itself be sent to loopback addresses, as given: by default the first."""
    wanted = {ipaddress.ip_address(address) for address in allowed or ("127.0.0.1",)}
    return Fetcher(resolve=names(**answers), is_allowed=wanted.__contains__, ports=ANY_PORT)


async def fetch(fetcher: Fetcher, url: str, max_bytes: int = 100_000, timeout_s: float = 10) -> bytes:
    return await fetcher.fetch(url, max_bytes=max_bytes, timeout_s=timeout_s)


async def refusal(fetcher: Fetcher, url: str, **limits: Any) -> FetchError:
    with pytest.raises(FetchError) as raised:
        await fetch(fetcher, url, **limits)
    assert str(raised.value).endswith(".")
    return raised.value


@pytest.fixture(scope="module")
def all_connects() -> list[Any]:
    seen: list[Any] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
            seen.append(arguments[1])

    sys.addaudithook(watch)  # for good: there is no way to take it back
    return seen


@pytest.fixture
def connects(all_connects: list[Any]) -> list[Any]:
    """Every attempt of this process to connect to anything, as the interpreter reports it."""
    all_connects.clear()
    return all_connects


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


LOOPBACK_URLS = [
    "http://127.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.0.0.01:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://%6cocalhost:{port}/",
    "http://127.0.0.1%2f.example.com:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://\uff11\uff12\uff17.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://lo\u00adcalhost:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://8.8.8.8@127.0.0.1:{port}/",
    "http://user:secret@127.0.0.1:{port}/",
    "http://8.8.8.8\\@127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1 :{port}/",
    "http://127.0.0.1\r\nHost: x:{port}/",
    "http:127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "file://127.0.0.1:{port}/etc/passwd",
    "unix://127.0.0.1:{port}/",
]


@pytest.mark.parametrize("url", LOOPBACK_URLS)
def test_nothing_is_sent_to_this_machine(url: str, connects: list[Any]) -> None:
    """With the real rules and the real resolver; only the port is let through, so that the server could be reached."""

    async def run() -> None:
        async with serving(reply(), ["127.0.0.1", "::1"]) as server:
            error = await refusal(Fetcher(ports=ANY_PORT), url.format(port=server.port))
            assert error.kind in ("forbidden", "unsupported")
            assert (server.connections, connects) == (0, [])

    asyncio.run(run())


@pytest.mark.parametrize("address", [address for address in FORBIDDEN if "%" not in address])
def test_nothing_is_sent_to_forbidden_addresses(address: str, connects: list[Any]) -> None:
    literal = f"[{address}]" if ":" in address else address
    for url in (f"http://{literal}/", "http://trap.test/"):
        error = asyncio.run(refusal(Fetcher(resolve=names(trap=address)), url))
        assert error.kind == "forbidden"
    assert connects == []


@pytest.mark.parametrize("answer", ["8.8.8.8 127.0.0.1", "2606:4700:4700::1111 10.0.0.1", "::1 1.1.1.1"])
def test_one_bad_address_among_good_ones_is_enough(answer: str, connects: list[Any]) -> None:
    assert asyncio.run(refusal(Fetcher(resolve=names(mixed=answer)), "http://mixed.test/")).kind == "forbidden"
    assert connects == []


def test_an_answer_of_dns_that_changes_after_the_check_changes_nothing(connects: list[Any]) -> None:
    async def run() -> None:
        async with (
            serving(reply()) as server,
            serving(reply(b"secret"), ["127.0.0.2"], server.port) as private,
        ):
            fetcher = open_fetcher("127.0.0.1", rebound=["127.0.0.1", "127.0.0.2"])
            url = f"http://rebound.test:{server.port}/"
            assert await fetch(fetcher, url) == PICTURE
            assert connects == [("127.0.0.1", server.port)]
            # The name leads to the private server by now, which is seen before anything is sent.
            assert (await refusal(fetcher, url)).kind == "forbidden"
            assert private.connections == 0

    asyncio.run(run())


def test_an_address_that_does_not_answer_is_followed_by_the_next() -> None:
    async def run() -> None:
        async with serving(reply()) as server:
            fetcher = open_fetcher("127.0.0.3", "127.0.0.1", two="127.0.0.3 127.0.0.1")
            assert await fetch(fetcher, f"http://two.test:{server.port}/") == PICTURE

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


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("http://127.0.0.2:{port}/", "forbidden"),
        ("//127.0.0.2:{port}/", "forbidden"),
        ("http://private.test:{port}/", "forbidden"),
        ("http://2130706434:{port}/", "forbidden"),
        ("http://0x7f.2:{port}/", "forbidden"),
        ("http://[::ffff:127.0.0.2]:{port}/", "forbidden"),
        ("http://169.254.169.254/latest/meta-data/", "forbidden"),
        ("http://user:secret@127.0.0.1:{port}/", "forbidden"),
        ("http://127.0.0.1:0/", "forbidden"),
        ("file:///etc/passwd", "unsupported"),
        ("ftp://127.0.0.2:{port}/", "unsupported"),
        ("data:image/png;base64,AAAA", "unsupported"),
        ("http://[::1", "unsupported"),
        ("http://[::1]x]/", "unsupported"),
        ("/" + "a" * 3000, "unsupported"),
    ],
)
def test_a_redirect_to_where_it_must_not_lead(location: str, kind: str, connects: list[Any]) -> None:
    async def run() -> None:
        async with serving(reply(b"secret"), ["127.0.0.2", "::1"]) as private:
            moved = reply(b"", "302 Found", Location=location.format(port=private.port))
            async with serving(moved) as server:
                fetcher = open_fetcher(private="127.0.0.2")
                assert (await refusal(fetcher, f"http://127.0.0.1:{server.port}/")).kind == kind
                assert connects == [("127.0.0.1", server.port)]
            assert private.connections == 0

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


def test_only_the_ports_of_the_web(connects: list[Any]) -> None:
    for url in ("http://8.8.8.8:22/", "https://8.8.8.8:8265/", "http://8.8.8.8:0/", "http://8.8.8.8:99999/"):
        assert asyncio.run(refusal(Fetcher(), url)).kind == "forbidden"
    assert connects == []


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


def test_the_surroundings_do_not_redirect_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with serving(reply(b"proxied")) as proxy, serving(reply()) as server:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert await fetch(open_fetcher(), f"http://127.0.0.1:{server.port}/") == PICTURE
            assert proxy.connections == 0

    asyncio.run(run())


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


def test_what_the_service_calls_has_the_real_rules(connects: list[Any]) -> None:
    async def run() -> None:
        async with serving(reply()) as server:
            for url in (f"http://127.0.0.1:{server.port}/", "http://localhost/", "http://[::1]/"):
                with pytest.raises(FetchError) as raised:
                    await fetch_url.fetch(url, max_bytes=1000, timeout_s=5)
                assert raised.value.kind == "forbidden"
            assert connects == []

    asyncio.run(run())


def test_no_other_module_fetches_urls() -> None:
    """One door is easier to guard: Gradio had to mend the same hole in five places."""
    doors = ("httpx", "requests", "aiohttp", "urllib3", "urllib.request", "http.client", "httpcore", "ftplib")
    found = {}
    for file in [*(ROOT / "serve").rglob("*.py"), *(ROOT / "core").rglob("*.py")]:
        imported = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        if hits := {name for name in imported if any(name == door or name.startswith(f"{door}.") for door in doors)}:
            found[str(file.relative_to(ROOT))] = hits
    assert found.keys() == {"serve/fetch_url.py"}
