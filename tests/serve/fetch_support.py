"""A web server that counts who connects, and fetchers that may be sent to it."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve.fetch_url import Address, Fetcher, FetchError

PICTURE = bytes(range(256)) * 8
ANY_PORT = range(1, 65536)
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
