"""Answers taken in whole and byte by byte, and what makes a connection fit for another request."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from yarl import URL

from stages.images.buffers import Buffers
from stages.images.http_client import Connection, HttpClient
from stages.images.http_message import Answer, BadResponse, parse_head
from stages.images.resolver import Resolver
from stages.images.web_client import tls_context

BODY = bytes(range(256)) * 3
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    def write(self, data: Any) -> None: ...
    def abort(self) -> None: ...


def take(data: bytes, step: int, limit: int = 100_000, end: bool = False) -> tuple[Answer | Exception, bool]:
    """The answer that a connection makes of `data` when it comes in pieces of `step` bytes, and whether it may be used again."""

    async def feed() -> tuple[Answer | Exception, bool]:
        connection = Connection(Buffers(), lambda _: None)
        connection.connection_made(Transport())
        waiting = connection.ask(b"", lambda head: limit)
        at = 0
        while at < len(data) and not waiting.done():
            place = connection.get_buffer(-1)
            n = min(step, len(data) - at, len(place))
            place[:n] = data[at : at + n]
            del place
            connection.buffer_updated(n)
            at += n
        reusable = connection.reusable and at == len(data)
        if end:
            connection.connection_lost(None)
        assert waiting.done(), "the answer is not whole"
        return waiting.exception() or waiting.result(), reusable

    return asyncio.run(feed())


def http(body: bytes, *lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([status, *lines, b"", body])


ANSWERS: dict[str, tuple[bytes, bytes | type[Exception], bool]] = {  # bytes that come, body or error, connection reusable
    "length": (http(BODY, b"Content-Length: 768"), BODY, True),
    "no body": (http(b"", b"Content-Length: 0"), b"", True),
    "no content": (http(b"", b"Content-Length: 5", status=b"HTTP/1.1 204 No Content"), b"", True),
    "close": (http(BODY, b"Content-Length: 768", b"Connection: Keep-Alive, Close"), BODY, False),
    "1.0": (http(BODY, b"Content-Length: 768", status=b"HTTP/1.0 200 OK"), BODY, False),
    "1.0 kept": (http(BODY, b"Content-Length: 768", b"connection: keep-alive", status=b"HTTP/1.0 200 OK"), BODY, True),
    "chunks": (CHUNKED + b"100;x=y\r\n" + BODY[:256] + b"\r\n0200\r\n" + BODY[256:] + b"\r\n0\r\nX-Trailer: a\r\n\r\n", BODY, True),
    "chunks and a length": (http(b"3\r\nabc\r\n0\r\n\r\n", b"Content-Length: 1", b"Transfer-Encoding: chunked"), b"abc", True),
    "equal lengths": (http(BODY, b"Content-Length: 768, 768", b"Content-Length: 768"), BODY, True),
    "interim": (http(b"", status=b"HTTP/1.1 103 Early Hints") + http(BODY, b"Content-Length: 768"), BODY, True),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 768\nA: b\n\n" + BODY, BODY, True),
    "folded header": (http(b"abc", b"A: b", b"  c", b"Content-Length: 3"), b"abc", True),
    "no reason": (http(b"abc", b"Content-Length: 3", status=b"HTTP/1.1 200"), b"abc", True),
    "gzip": (http(gzip.compress(BODY, mtime=0), b"Content-Length: %d" % len(gzip.compress(BODY, mtime=0)), b"Content-Encoding: GZIP"), BODY, True),
    "zlib": (http(zlib.compress(BODY), b"Content-Length: %d" % len(zlib.compress(BODY)), b"Content-Encoding: deflate"), BODY, True),
    "bare deflate": (http(zlib.compress(BODY)[2:-4], b"Content-Length: %d" % (len(zlib.compress(BODY)) - 6), b"Content-Encoding: deflate"), BODY, True),
    "half a gzip": (http(gzip.compress(BODY, mtime=0)[:50], b"Content-Length: 50", b"Content-Encoding: gzip"), EOFError, False),
    "brotli": (http(b"abc", b"Content-Length: 3", b"Content-Encoding: br"), BadResponse, False),
    "two lengths": (http(b"abcd", b"Content-Length: 3", b"Content-Length: 4"), BadResponse, False),
    "length with a sign": (http(b"abc", b"Content-Length: +3"), BadResponse, False),
    "gzip below chunks": (http(b"", b"Transfer-Encoding: gzip, chunked"), BadResponse, False),
    "size of a chunk with a sign": (CHUNKED + b"+3\r\nabc\r\n", BadResponse, False),
    "endless chunk line": (CHUNKED + b"3;" + b"x" * 5000, BadResponse, False),
    "space before the colon": (http(b"abc", b"Content-Length : 3"), BadResponse, False),
    "switching protocols": (http(b"", b"Upgrade: h2c", status=b"HTTP/1.1 101 Switching"), BadResponse, False),
    "HTTP/2": (http(b"", status=b"HTTP/2 200"), BadResponse, False),
    "status 000": (http(b"", status=b"HTTP/1.1 000 No"), BadResponse, False),
}


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_in_pieces(name: str, step: int) -> None:
    data, wanted, reusable = ANSWERS[name]
    found, kept = take(data, step)
    if isinstance(wanted, bytes):
        assert isinstance(found, Answer) and found.body == wanted and not found.cut
    else:
        assert type(found) is wanted
    assert kept == reusable


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_ends_of_the_connection(step: int) -> None:
    to_the_end = http(BODY)
    whole, _ = take(to_the_end, step, end=True)
    assert isinstance(whole, Answer) and whole.body == BODY
    for cut in (http(BODY[:-1], b"Content-Length: 768"), CHUNKED + b"3\r\nabc\r\n", CHUNKED + b"3\r\nabc\r\n0\r\n"):
        assert isinstance(take(cut, step, end=True)[0], EOFError)
    for cut in (b"", b"HTTP/1.1 200 OK\r\nConte"):
        assert isinstance(take(cut, step, end=True)[0], ConnectionResetError)


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_no_more_is_taken_than_is_wanted(step: int) -> None:
    chunks = CHUNKED + b"300\r\n" + BODY + b"\r\n0\r\n\r\n"
    packed = http(gzip.compress(bytes(10**6)), b"Content-Encoding: gzip", b"Content-Length: %d" % len(gzip.compress(bytes(10**6))))
    for data, limit in ((http(BODY, b"Content-Length: 768"), 767), (http(BODY), 500), (chunks, 500), (packed, 5000)):
        found, kept = take(data, step, limit)
        assert isinstance(found, Answer) and found.cut and len(found.body) <= limit, data[:60]
    exact, kept = take(http(BODY, b"Content-Length: 768"), step, 768)
    assert isinstance(exact, Answer) and exact.body == BODY and not exact.cut and kept
    unwanted, kept = take(http(BODY, b"Content-Length: 768"), step, 0)
    assert isinstance(unwanted, Answer) and unwanted.body == b"" and not kept


def test_a_long_body_grows_as_it_comes() -> None:
    long = bytes(3_000_000)
    data = http(long, b"Content-Length: 3000000")
    found, kept = take(data, 100_000, 10**7)
    assert isinstance(found, Answer) and found.body == long and kept


def test_header_values_are_text_whatever_they_hold() -> None:
    head = parse_head(b"HTTP/1.1 200 caf\xe9\r\nContent-Type: \xff\xfe\xc3\xa9 \r\nA:b\r\nA: c")
    assert head.headers["content-type"] == "\ufffd\ufffdé" and head.headers.getall("a") == ["b", "c"] and head.reason == "caf\ufffd"


def client() -> HttpClient:
    return HttpClient({"User-Agent": "test"}, Resolver(5), tls_context, allow_private=True, max_idle=2)


def test_what_follows_a_body_never_reaches_the_next_row(web: Any) -> None:
    """A body longer than it says, whose rest is a whole answer: the next request must not get that one."""
    web.answers["/long"] = web.http(b"first") + web.http(b"smuggled")
    web.answers["/next"] = web.http(b"next")

    async def ask() -> list[bytes]:
        asking = client()
        try:
            return [(await asking.get(URL(web.url(path)), lambda head: 1000)).body for path in ("/long", "/next") * 20]
        finally:
            await asking.close()

    assert asyncio.run(ask()) == [b"first", b"next"] * 20


def test_a_kept_connection_that_the_server_closed_is_replaced(web: Any) -> None:
    async def hang_up_later(writer: asyncio.StreamWriter, times: int) -> None:
        writer.write(web.http(b"body"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()

    web.answers["/a"] = hang_up_later

    async def ask() -> int:
        asking = client()
        try:
            for _ in range(10):
                assert (await asking.get(URL(web.url("/a")), lambda head: 1000)).body == b"body"
                await asyncio.sleep(0.018)
        finally:
            await asking.close()
        return web.connections

    assert 1 < asyncio.run(ask()) <= 10


def test_idle_connections_are_bounded_and_closed(web: Any, new_web: Callable[..., Any]) -> None:
    servers = [new_web(host=f"127.0.0.{number}") for number in range(2, 7)]

    async def ask() -> None:
        asking = client()
        for server in servers:
            server.answers["/a"] = server.http(b"body")
            await asking.get(URL(server.url("/a")), lambda head: 1000)
        assert len(asking._idle) == 2
        await asking.close()
        assert not asking._idle and not asking._by_key

    asyncio.run(ask())


def test_credentials_of_the_url_and_odd_hosts(web: Any) -> None:
    web.answers["/a"] = web.http(b"body")

    async def ask(url: str, **headers: str) -> bytes:
        asking = HttpClient(headers, Resolver(5), tls_context, allow_private=True)
        await asking.get(URL(url), lambda head: 1000)
        await asking.close()
        return web.heads["/a"].lower()

    head = asyncio.run(ask(f"http://user:p%40ss@localhost:{web.port}/a"))
    assert b"authorization: basic dxnlcjpwqhnz\r\n" in head and f"host: localhost:{web.port}\r\n".encode() in head
    assert asyncio.run(ask(f"http://user@127.0.0.1:{web.port}/a", Authorization="mine")).count(b"authorization") == 1
    for name, value in (("A b", "c"), ("A", "b\r\nC: d"), ("", "x")):
        with pytest.raises(ValueError, match="not a header"):
            HttpClient({name: value}, Resolver(5), tls_context, allow_private=True)
