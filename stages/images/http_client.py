"""A small HTTP/1.1 client for many GETs: bodies are received where they stay, and hostile answers end in one of few errors.

Beside a general client it leaves out what a download does not need (cookies, uploads, redirects, compression that was not asked for),
and costs about half the processor time per image. Framing follows RFC 9112, section 6.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import cast

import aiohappyeyeballs
from multidict import CIMultiDict
from yarl import URL

from stages.images import addresses
from stages.images.buffers import Buffers
from stages.images.http_message import Answer, BadResponse, Body, Wants, parse_head
from stages.images.resolver import Address, Resolver

MAX_HEAD_BYTES = 1 << 16
_MAX_INTERIM = 8  # heads with status 1xx before the answer
_EYEBALLS_DELAY_S = 0.25

Key = tuple[str, str, int]


class StaleConnection(ConnectionResetError):
    """A kept connection was closed by the server before it answered: the request may be sent again on a new one."""


class Connection(asyncio.BufferedProtocol):
    """One connection, one request at a time. `buffers` are shared by all connections of a loop; their scratch holds bytes only within one call."""

    def __init__(self, buffers: Buffers, forget: Callable[[Connection], None]):
        self.buffers, self.forget = buffers, forget
        self.transport: asyncio.Transport | None = None
        self.body: Body | None = None
        self.reusable = self.reused = False
        self._waiting: asyncio.Future[Answer] | None = None
        self._bytes = bytearray()  # of a head that is not complete yet
        self._interim = 0

    def ask(self, request: bytes, wants: Wants) -> asyncio.Future[Answer]:
        """Send a request; the future has the answer, or BadResponse, EOFError (the body ended early) or an OSError."""
        assert self.transport is not None
        self._wants, self._interim, self.reusable, self.body = wants, 0, False, None
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    @property
    def open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        """End the connection without any further word."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's, which Ray's workers use where it is installed, is no subclass

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffers.view if self.body is None else self.body.space() or self.buffers.view

    def buffer_updated(self, n: int) -> None:
        if self._waiting is None or self._waiting.done():  # bytes that nobody asked for
            self.reusable = False
            self.close()
            return
        try:
            if self.body is not None:
                if self.body.received(n, self.buffers.view):
                    self._finish()
            elif self._bytes:
                self._bytes += self.buffers.view[:n]
                data = bytes(self._bytes)
                self._bytes.clear()
                self._read_head(data, memoryview(data))
            else:
                self._read_head(self.buffers.scratch, self.buffers.view[:n])
        except (BadResponse, EOFError) as error:
            self._fail(error)

    def _read_head(self, data: bytes | bytearray, view: memoryview) -> None:
        """Heads at the beginning of `data`, of which `view` shows as much as came; what follows is the body's."""
        at = 0
        while self.body is None:
            end, skip = _end_of_head(data, at, len(view))
            if (len(view) if end < 0 else end) - at > MAX_HEAD_BYTES:
                raise BadResponse(f"headers of more than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                self._bytes += view[at:]
                return
            head = parse_head(bytes(view[at:end]))
            at = end + skip
            if 100 <= head.status < 200:
                self._interim += 1
                if head.status == 101 or self._interim > _MAX_INTERIM:
                    raise BadResponse(f"status {head.status}, which was not asked for")
                continue
            self.body = Body(head, self._wants(head), self.buffers)
        if self.body.take(view[at:]):
            self._finish()

    def _finish(self) -> None:
        assert self.body is not None and self._waiting is not None
        answer = self.body.answer()
        self.reusable = self.body.reusable
        self._waiting.set_result(answer)
        self.body = None

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.reusable = False
        self.forget(self)
        if self._waiting is None or self._waiting.done():
            return
        try:
            if self.body is None:
                kind = StaleConnection if self.reused and not self._bytes else ConnectionResetError
                self._fail(error if error is not None and kind is ConnectionResetError else kind("the server closed the connection without an answer"))
            elif error is not None:
                self._fail(error)
            else:
                self.body.ended()
                self._finish()
        except (BadResponse, EOFError) as problem:
            self._fail(problem)


def _end_of_head(data: bytes | bytearray, start: int, stop: int) -> tuple[int, int]:
    """Place of the empty line that ends a head, and its length; (-1, 0) where there is none yet. Bare line feeds count too."""
    end = data.find(b"\r\n\r\n", start, stop)
    bare = data.find(b"\n\n", start, end if end >= 0 else stop)
    if bare >= 0:
        return bare, 2
    return (end, 4) if end >= 0 else (-1, 0)


class HttpClient:
    """GETs over kept connections, at most `max_idle` of them idle. For one event loop.

    Unless `allow_private`, connections are made to public addresses only: the check is on the very address that is connected to.
    """

    def __init__(self, headers: Mapping[str, str], resolver: Resolver, tls: Callable[[], ssl.SSLContext], allow_private: bool, max_idle: int = 64):
        self.resolver, self.tls, self.allow_private, self.max_idle = resolver, tls, allow_private, max_idle
        self._headers = _header_lines(headers)
        self._own_authorization = any(name.lower() == "authorization" for name in headers)
        self.buffers = Buffers(max_idle)
        self._idle: dict[Connection, Key] = {}  # oldest first
        self._by_key: dict[Key, list[Connection]] = {}

    async def get(self, url: URL, wants: Wants) -> Answer:
        """The answer to one GET; redirects are answers. `wants` gets the head and says how many bytes of the body to read."""
        key = (url.scheme, url.raw_host or "", url.port or 80)
        request = self._request(url)
        while True:
            connection = self._take(key)
            if connection is None:
                connection = await self._connect(key)
            try:
                answer = await connection.ask(request, wants)
            except BaseException as error:
                connection.close()
                # What is wrong with a kept connection may be the fault of the answer before: a new one tells.
                if connection.reused and isinstance(error, (StaleConnection, BadResponse)):
                    continue
                raise
            if connection.reusable and connection.open:
                self._keep(key, connection)
            else:
                connection.close()
            return answer

    async def close(self) -> None:
        for connection in list(self._idle):
            connection.close()
        await asyncio.sleep(0)  # lets the transports close their sockets

    def _request(self, url: URL) -> bytes:
        credentials = b""
        if not self._own_authorization and (url.user or url.password):
            pair = base64.b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
            credentials = f"Authorization: Basic {pair}\r\n".encode("ascii")
        return f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n".encode("ascii") + credentials + self._headers

    def _take(self, key: Key) -> Connection | None:
        while kept := self._by_key.get(key):
            connection = kept[-1]  # the last used is the likeliest to be open still
            self._forget(connection)
            if connection.open:
                connection.reused = True
                return connection
        return None

    def _keep(self, key: Key, connection: Connection) -> None:
        while len(self._idle) >= self.max_idle:
            oldest = next(iter(self._idle))
            self._forget(oldest)
            oldest.close()
        self._idle[connection] = key
        self._by_key.setdefault(key, []).append(connection)

    def _forget(self, connection: Connection) -> None:
        key = self._idle.pop(connection, None)
        if key is not None:
            self._by_key[key].remove(connection)
            if not self._by_key[key]:
                del self._by_key[key]

    async def _connect(self, key: Key) -> Connection:
        scheme, host, port = key
        found = [_address_info(address, port) for address in self._allowed(await self.resolver.addresses(host))]
        made = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_EYEBALLS_DELAY_S, interleave=1)
        tls = {"ssl": self.tls(), "server_hostname": host.rstrip(".")} if scheme == "https" else {}
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self.buffers, self._forget), sock=made, **tls)  # type: ignore[arg-type]
        return connection

    def _allowed(self, found: tuple[Address, ...]) -> tuple[Address, ...]:
        if self.allow_private:
            return found
        public = tuple(address for address in found if addresses.is_public(address[1]))
        if not public:
            addresses.check_public(found[0][1])
        return public


def _address_info(address: Address, port: int) -> tuple[int, int, int, str, tuple]:
    family, text = address
    host, _, scope = text.partition("%")
    place: tuple = (host, port) if family == socket.AF_INET else (host, port, 0, int(scope or 0))
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place


def _header_lines(headers: Mapping[str, str]) -> bytes:
    """Header lines and the empty line after them. Raises ValueError for a value that would break out of its line."""
    for name, value in headers.items():
        if not name or any(ord(c) <= 32 or c in ":\x7f" for c in name) or any(c in "\r\n\0" for c in value):
            raise ValueError(f"not a header: {name!r}")
    return "".join(f"{name}: {value}\r\n" for name, value in CIMultiDict(headers).items()).encode("utf-8") + b"\r\n"
