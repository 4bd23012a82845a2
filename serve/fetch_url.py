"""Pictures from links. The only place that fetches a URL: whoever sends one must not reach anything private with it.

A host is resolved once, all its addresses are checked, and the connection goes to a checked address, not to the name:
an answer of DNS that changes in between changes nothing. Redirects are followed here, each checked like the first URL.
What cannot be known from outside is the machine's own network: a private service on a public address is reached.
"""

import asyncio
import functools
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

import httpx

Address = IPv4Address | IPv6Address

MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 2048
# Public pictures are here. Other ports belong to services that never meant to meet strangers (mail, databases), and to
# answer differently for open and closed ones would make a port scanner of this service.
_WEB_PORTS = (80, 443)
_DEFAULT_PORT = {"http": 80, "https": 443}
# A bare transport sends only these. No compression: the bytes that are counted are then the bytes that are decoded.
_HEADERS = {"User-Agent": "patchwork", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62}))*")
# Such a name is an IPv4 address to the system's resolver (`0x7f.1`, `2130706433`), as browsers have it too.
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

# From IANA's registries of special addresses, in full: `ipaddress.is_global` lacks some, and others in older Pythons.
_NOT_PUBLIC_V4 = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # a public address, behind which every machine on Azure finds its host's own services
        ),
    )
)
_PUBLIC_V6 = ip_network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # protocols' own, among them Teredo, which carries an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4, which carries one too; both are retired, and no picture needs them
            "3fff::/20",
        ),
    )
)
# Networks without IPv4 reach it through these: what counts is the address inside.
_CARRIES_V4 = (ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96"))

# Its own, as a name server that does not answer holds a thread for many seconds: others must not wait for those.
_NUM_RESOLVERS = 64
_RESOLVERS = ThreadPoolExecutor(_NUM_RESOLVERS, thread_name_prefix="resolve")
_FREE_RESOLVERS = threading.Semaphore(_NUM_RESOLVERS)


Kind = Literal["forbidden", "unsupported", "too_large", "failed", "timeout"]


class FetchError(Exception):
    """There is no picture at this URL for whoever sent it; the message is a sentence for them."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_public(address: Address) -> bool:
    """Whether strangers may have us connect there: an address of the public internet, of one machine."""
    if isinstance(address, IPv6Address):
        if any(address in network for network in _CARRIES_V4):
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _PUBLIC_V6 or any(address in network for network in _NOT_PUBLIC_V6):
            return False
    elif any(address in network for network in _NOT_PUBLIC_V4):
        return False
    return address.is_global


async def resolve(host: str) -> Sequence[Address]:
    """All addresses of a name, in the order in which the system would try them.

    Raises:
        OSError: there are none.
        FetchError: all threads are held by name servers that do not answer.
    """
    if not _FREE_RESOLVERS.acquire(blocking=False):
        raise FetchError("timeout", "Too many links wait for name servers that do not answer; try again shortly.")
    # As bytes: a text would be encoded once more, by rules that differ from the URL's.
    looking = _RESOLVERS.submit(socket.getaddrinfo, host.encode("ascii"), None, type=socket.SOCK_STREAM)
    looking.add_done_callback(lambda _: _FREE_RESOLVERS.release())  # later than the request ends, if that gives up
    return [ip_address(row[4][0]) for row in await asyncio.wrap_future(looking)]


@functools.cache
def _public_certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class Fetcher:
    """What `fetch` does, with its rules as arguments: tests need a server on this machine."""

    def __init__(
        self,
        *,
        resolve: Callable[[str], Awaitable[Sequence[Address]]] = resolve,
        is_allowed: Callable[[Address], bool] = is_public,
        ports: Container[int] = _WEB_PORTS,
        tls: Callable[[], ssl.SSLContext] = _public_certificates,
    ) -> None:
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._ports = ports
        self._tls = tls

    async def fetch(self, url: str, *, max_bytes: int, timeout_s: float) -> bytes:
        """See `fetch`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(_parsed(url), max_bytes)
        except TimeoutError as error:
            raise FetchError("timeout", f"The picture did not arrive from its server in {timeout_s:g} s.") from error

    async def _follow(self, url: httpx.URL, max_bytes: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._checked_addresses(url)
            answer = await self._get(url, addresses, max_bytes)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise FetchError("failed", f"The link leads on more than {MAX_REDIRECTS} times.")

    async def _checked_addresses(self, url: httpx.URL) -> Sequence[Address]:
        """Where to connect to; raises FetchError unless the whole URL, and every address of its host, is allowed."""
        host = _checked_host(url)
        if (_DEFAULT_PORT[url.scheme] if url.port is None else url.port) not in self._ports:
            raise FetchError("forbidden", f"Links may not name port {url.port}.")
        try:
            addresses = [ip_address(host)] if _is_address(host) else await self._resolve(host)
        except OSError as error:
            raise FetchError("failed", f"There is no server named {host}.") from error
        # Not merely those that are allowed: a name that mixes both is an attempt, or a mistake that must be seen.
        if not all(self._is_allowed(address) for address in addresses):
            raise FetchError("forbidden", f"Links to {host} are not followed: its address is not a public one.")
        return addresses

    async def _get(self, url: httpx.URL, addresses: Sequence[Address], max_bytes: int) -> bytes | httpx.URL:
        """The body, or where it leads on to, from the first address that can be connected to."""
        host = url.raw_host.decode("ascii")
        unreachable: httpx.ConnectError | None = None
        for address in addresses:
            try:
                return await self._get_from(address, url, max_bytes)
            except httpx.ConnectError as error:
                unreachable = error
            except httpx.TransportError as error:
                raise FetchError("failed", f"The server {host} broke off its answer.") from error
        raise FetchError("failed", f"The server {host} cannot be reached.") from unreachable

    async def _get_from(self, address: Address, url: httpx.URL, max_bytes: int) -> bytes | httpx.URL:
        request = httpx.Request(
            "GET",
            url.copy_with(host=str(address), fragment=None),
            headers={"Host": url.netloc.decode("ascii"), **_HEADERS},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},  # the name that the certificate must have
        )
        # A transport, not a client: it reads no proxies or passwords from its surroundings, keeps no cookies, follows
        # and unpacks nothing. A new one each time, or a connection could be used again for another host.
        async with httpx.AsyncHTTPTransport(verify=self._tls()) as transport:
            response = await transport.handle_async_request(request)
            try:
                return await _read(response, url, max_bytes)
            finally:
                await response.aclose()


async def _read(response: httpx.Response, url: httpx.URL, max_bytes: int) -> bytes | httpx.URL:
    if response.has_redirect_location:
        return _parsed(response.headers["location"], relative_to=url)
    if response.status_code != httpx.codes.OK:
        raise FetchError("failed", f"The picture's server answered with status {response.status_code}.")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError("failed", "The picture's server sent it compressed, which it was asked not to.")
    too_large = FetchError("too_large", f"The picture behind the link has more than {max_bytes:,} bytes.")
    declared = response.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _parsed(text: str, relative_to: httpx.URL | None = None) -> httpx.URL:
    if len(text) > MAX_URL_CHARACTERS:
        raise FetchError("unsupported", f"Links may have at most {MAX_URL_CHARACTERS:,} characters.")
    try:
        return httpx.URL(text) if relative_to is None else relative_to.join(text)
    except (httpx.InvalidURL, ValueError) as error:  # the second from the standard library's `urljoin`
        raise FetchError("unsupported", "The link is not a valid URL.") from error


def _checked_host(url: httpx.URL) -> str:
    """The host as it is resolved: in ASCII, lower case; raises FetchError for what only a trick would write."""
    if url.scheme not in _DEFAULT_PORT:
        raise FetchError("unsupported", "Links must begin with http:// or https://.")
    if url.userinfo:
        raise FetchError("forbidden", "Links may not contain a user name or a password.")
    host = url.raw_host.decode("ascii")
    if _is_address(host):
        return host
    if not _HOST_NAME.fullmatch(host):
        raise FetchError("forbidden", "The link's host is neither a name nor an address in their usual form.")
    if _ENDS_IN_A_NUMBER.fullmatch(host):
        raise FetchError("forbidden", "The link's host is a number that is not an address in its usual form.")
    return host


def _is_address(host: str) -> bool:
    if "%" in host:  # a zone, as in `fe80::1%eth0`: the name of a network card of ours
        return False
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_FETCHER = Fetcher()


async def fetch(url: str, *, max_bytes: int, timeout_s: float) -> bytes:
    """The bytes behind a stranger's link, at most `max_bytes` of them, in `timeout_s` seconds, redirects included.

    Raises:
        FetchError: with `kind` "unsupported" (no http or https URL), "forbidden" (not on the public internet, another
            port, a password in it), "too_large", "timeout", or "failed" (the server's fault).
    """
    return await _FETCHER.fetch(url, max_bytes=max_bytes, timeout_s=timeout_s)
