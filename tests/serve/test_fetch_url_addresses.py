"""Links from strangers: what must not even be connected to, against real servers that count."""

import ast
import asyncio
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from fetch_support import ANY_PORT, PICTURE, fetch, names, open_fetcher, refusal, reply, serving

from serve import fetch_url
from serve.fetch_url import Fetcher, FetchError, is_public

ROOT = Path(__file__).resolve().parents[2]
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


def test_only_the_ports_of_the_web(connects: list[Any]) -> None:
    for url in ("http://8.8.8.8:22/", "https://8.8.8.8:8265/", "http://8.8.8.8:0/", "http://8.8.8.8:99999/"):
        assert asyncio.run(refusal(Fetcher(), url)).kind == "forbidden"
    assert connects == []


def test_the_surroundings_do_not_redirect_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with serving(reply(b"proxied")) as proxy, serving(reply()) as server:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert await fetch(open_fetcher(), f"http://127.0.0.1:{server.port}/") == PICTURE
            assert proxy.connections == 0

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
