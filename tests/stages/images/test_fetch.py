"""Every way a fetch can end, each against a real server on loopback that does exactly that."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.images import addresses, event_loop, web_client
from stages.images.fetch import Fetched, FetchOptions, fetch_all

BODY = b"some bytes of an image"
LOOPS = {asyncio.new_event_loop, event_loop.new_event_loop}  # the second is uvloop's where that is installed


def get(urls: list[str | None], **options: object) -> list[Fetched]:
    """Fetch and give the results in the order of the URLs."""
    settings = {"allow_private": True, "timeout_s": 2.0, "retries": 0, "backoff_s": 0.01, **options}
    found: dict[int, Fetched] = {}

    async def handle(result: Fetched) -> None:
        assert result.row not in found, "a row was handed on twice"
        found[result.row] = result

    asyncio.run(fetch_all(urls, FetchOptions(**settings), handle))
    return [found[row] for row in range(len(urls))]


def code(url: str | None, **options: object) -> str:
    (result,) = get([url], **options)
    assert result.failure is not None and result.failure.detail, f"no failure, but status {result.status}"
    assert result.body == b"", "a failed row holds bytes"
    return result.failure.code


def test_gives_body_status_and_type(web: Any) -> None:
    web.answers["/a"] = web.http(BODY, content_type="image/jpeg; charset=utf-99")
    (result,) = get([web.url("/a")])
    assert (result.body, result.status, result.content_type) == (BODY, 200, "image/jpeg; charset=utf-99")
    assert result.failure is None and result.url == web.url("/a")
    assert b"user-agent: mozilla/5.0 (compatible; pairmill" in web.heads["/a"].lower()


def test_large_bodies_that_arrive_side_by_side_are_not_mixed_up(web: Any) -> None:
    """Buffers serve one body after the other: each must be whole for as long as its row is handled, also where that waits."""
    bodies = {f"/{n}": bytes([n]) * (200_000 + 40_000 * n) for n in range(8)}
    web.answers |= {path: web.http(body) for path, body in bodies.items()}
    paths = [f"/{n % 8}" for n in range(80)]
    found: dict[int, bool] = {}

    async def handle(result: Fetched) -> None:
        await asyncio.sleep(0.002 * (result.row % 5))
        found[result.row] = result.body == bodies[paths[result.row]]

    for make_loop in LOOPS:
        found.clear()
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(fetch_all([web.url(path) for path in paths], FetchOptions(allow_private=True, retries=0), handle))
        assert found == dict.fromkeys(range(80), True)


def test_body_without_length_is_read_to_the_end(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY)
        writer.close()

    web.answers["/a"] = answer
    assert get([web.url("/a")])[0].body == BODY


def test_connections_are_reused(web: Any) -> None:
    web.answers["/a"] = web.http(BODY)
    assert all(result.body == BODY for result in get([web.url("/a")] * 100, concurrency=4))
    assert web.connections <= 4


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", "http_4xx"), ("410 Gone", "http_4xx"), ("403 Forbidden", "http_4xx"), ("999 No", "http_4xx"),
        ("304 Not Modified", "http_4xx"), ("500 Oops", "http_5xx"), ("503 Busy", "http_5xx"), ("429 Slow down", "rate_limited"),
    ],
)  # fmt: skip
def test_status_codes(web: Any, status: str, expected: str) -> None:
    web.answers["/a"] = web.http(b"", status) if status.startswith("304") else web.http(b"page", status)
    assert code(web.url("/a")) == expected


def test_dns() -> None:
    assert code("http://no-such-host.invalid/a.jpg", timeout_s=8.0) == "dns"


def test_connect_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert code(f"http://127.0.0.1:{port}/a.jpg") == "connect"


def test_reset_before_the_answer(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        web.abort(writer)

    web.answers["/a"] = answer
    assert code(web.url("/a")) == "reset"


def test_server_that_hangs_up_without_a_word_is_reset(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.close()

    web.answers["/a"] = answer
    assert code(web.url("/a")) == "reset"


def test_reset_in_the_body(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(web.http(BODY, content_length="1000000"))
        await writer.drain()
        await asyncio.sleep(0.05)
        web.abort(writer)

    web.answers["/a"] = answer
    assert code(web.url("/a")) == "reset"


def test_short_body(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(web.http(BODY, content_length="1000"))
        writer.close()

    web.answers["/a"] = answer
    assert code(web.url("/a")) == "short_body"


def test_chunks_without_an_end_are_a_short_body(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
        writer.close()

    web.answers["/a"] = answer
    assert code(web.url("/a")) == "short_body"


def test_empty_body(web: Any) -> None:
    web.answers["/a"] = web.http(b"")
    web.answers["/b"] = b"HTTP/1.1 204 No Content\r\n\r\n"
    assert [code(web.url(path)) for path in ("/a", "/b")] == ["empty_body", "empty_body"]


def test_timeout_on_silence_and_on_slow_drip(web: Any) -> None:
    async def silent(writer: asyncio.StreamWriter, _: int) -> None:
        await asyncio.sleep(30)

    async def drip(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(web.http(b"", content_length="100000"))
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    web.answers |= {"/silent": silent, "/drip": drip}
    started = time.monotonic()
    results = get([web.url("/silent"), web.url("/drip")], timeout_s=0.4)
    assert [result.failure.code for result in results if result.failure] == ["timeout", "timeout"]
    assert time.monotonic() - started < 10, "the drip alone takes 50 s"


def test_too_large_by_header_by_chunks_and_by_decompression(web: Any) -> None:
    async def endless(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()

    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 100_000
    web.answers |= {"/declared": web.http(b"x" * 200_001), "/endless": endless, "/bomb": web.http(bomb, content_encoding="gzip")}
    for path in web.answers:
        assert code(web.url(path), max_bytes=200_000) == "too_large", path


def test_body_of_exactly_the_limit_passes(web: Any) -> None:
    web.answers["/a"] = web.http(b"x" * 1000)
    assert len(get([web.url("/a")], max_bytes=1000)[0].body) == 1000


def test_compressed_body_is_unpacked(web: Any) -> None:
    web.answers["/a"] = web.http(gzip.compress(BODY), content_encoding="gzip")
    assert get([web.url("/a")])[0].body == BODY


def test_what_is_no_http_has_a_reason(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await writer.drain()

    web.answers["/a"] = answer
    assert code(web.url("/a")) == "bad_response"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    subprocess.run([*command, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


def test_tls_is_verified(new_web: Callable[..., Any], certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = new_web(tls=context)
    server.answers["/a"] = server.http(BODY)
    try:
        web_client.tls_context.cache_clear()
        assert code(server.url("/a")) == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        web_client.tls_context.cache_clear()
        assert get([server.url("/a")])[0].body == BODY, "a certificate that is trusted must pass"
    finally:
        web_client.tls_context.cache_clear()


def test_tls_spoken_to_a_plain_server() -> None:
    def answer_anything() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer_anything)
        server.start()
        assert code(f"https://127.0.0.1:{listener.getsockname()[1]}/a") == "tls"
        server.join()


def test_redirects_are_followed_to_the_last_url(web: Any) -> None:
    for hop in range(5):
        web.answers[f"/{hop}"] = web.http(b"", "302 Found", location=f"/{hop + 1}")
    web.answers["/5"] = web.http(BODY)
    (result,) = get([web.url("/0")], max_redirects=5)
    assert (result.body, result.url) == (BODY, web.url("/5"))
    assert code(web.url("/0"), max_redirects=4) == "too_many_redirects"


def test_redirect_loop(web: Any) -> None:
    web.answers["/a"] = web.http(b"", "301 Moved", location="/a")
    assert code(web.url("/a")) == "too_many_redirects"
    assert web.asked["/a"] == 6


def test_redirect_out_of_the_web_is_refused(web: Any) -> None:
    web.answers["/file"] = web.http(b"", "302 Found", location="file:///etc/passwd")
    web.answers["/ftp"] = web.http(b"", "302 Found", location="ftp://example.org/a")
    assert code(web.url("/file")) == "blocked_address"
    assert code(web.url("/ftp")) == "bad_row"


def test_private_addresses_are_refused_and_never_asked(web: Any) -> None:
    web.answers["/a"] = web.http(BODY)
    urls = [web.url("/a"), f"http://localhost:{web.port}/a", f"http://0x7f.1:{web.port}/a", f"http://[::ffff:127.0.0.1]:{web.port}/a"]
    assert [code(url, allow_private=False) for url in urls] == ["blocked_address"] * 4
    assert web.connections == 0


def test_redirect_to_a_refused_address_is_refused(web: Any, new_web: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hop counts as public here, so that only the second one can be what is refused."""
    inner = new_web(host="127.0.0.2")
    inner.answers["/secret"] = web.http(b"secret")
    web.answers["/a"] = web.http(b"", "302 Found", location=inner.url("/secret"))
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    assert code(web.url("/a"), allow_private=False) == "blocked_address"
    assert inner.connections == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fc00::1", False),
        ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert addresses.is_public(address) is public


@pytest.mark.parametrize("url", [None, "", "  ", "http://", "ftp://example.org/a.jpg", "http://[::1/", "http://h:99999999/"])
def test_unusable_urls_are_bad_rows(url: str | None) -> None:
    assert code(url) == "bad_row"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "images/a.jpg"])
def test_local_paths_are_refused(url: str) -> None:
    assert code(url) == "blocked_address"


def test_spaces_and_other_scripts_are_quoted(web: Any) -> None:
    web.answers["/a%20b%C3%A9.jpg?x=1%262"] = web.http(BODY)
    assert get([web.url("/a bé.jpg?x=1%262")])[0].body == BODY


def test_retry_helps_what_passes_and_leaves_the_rest(web: Any) -> None:
    def first(then: bytes, answer: bytes) -> Callable[..., Any]:
        async def serve(writer: asyncio.StreamWriter, times: int) -> None:
            writer.write(answer if times == 1 else then)
            await writer.drain()

        return serve

    web.answers["/500"] = first(web.http(BODY), web.http(b"", "500 Oops"))
    web.answers["/429"] = first(web.http(BODY), web.http(b"", "429 Slow", retry_after="1"))
    web.answers["/404"] = web.http(b"", "404 Not Found")
    started = time.monotonic()
    results = get([web.url(path) for path in ("/500", "/429", "/404")], retries=1)
    assert [result.body for result in results] == [BODY, BODY, b""]
    assert web.asked == {"/500": 2, "/429": 2, "/404": 1}
    assert 1.0 <= time.monotonic() - started < 6, "Retry-After asks for one second"


def test_retries_end(web: Any) -> None:
    web.answers["/a"] = web.http(b"", "503 Busy")
    assert code(web.url("/a"), retries=2) == "http_5xx"
    assert web.asked["/a"] == 3


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("noai", True), ("noimageai", True), ("NoIndex, nofollow", True), ("noimageindex", True), ("pairmill: noai", True),
        ("nofollow", False), ("otherbot: noai", False), ("max-image-preview: large", False),
        ("unavailable_after: 1 Jan 2030 00:00:00 GMT, noai", True), ("all", False),
    ],
)  # fmt: skip
def test_opt_out_headers(web: Any, value: str, refused: bool) -> None:
    web.answers["/a"] = web.http(BODY, x_robots_tag=value)
    (result,) = get([web.url("/a")])
    assert (result.opted_out, result.body) == ((value, b"") if refused else (None, BODY))
    (kept,) = get([web.url("/a")], refuse_opted_out=False)
    assert (kept.opted_out, kept.body) == (value if refused else None, BODY)


def test_concurrency_is_bounded_in_all_and_per_host(web: Any) -> None:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        await asyncio.sleep(0.01)
        writer.write(web.http(BODY))
        await writer.drain()

    web.answers["/a"] = answer
    assert all(result.body for result in get([web.url("/a")] * 60, concurrency=5, per_host=100))
    assert web.most_running["all"] == 5
    web.most_running.clear()
    assert all(result.body for result in get([web.url("/a")] * 60, concurrency=50, per_host=3))
    assert web.most_running["all"] == 3


def test_slow_host_does_not_hold_up_the_others(web: Any, new_web: Callable[..., Any]) -> None:
    async def slow(writer: asyncio.StreamWriter, _: int) -> None:
        await asyncio.sleep(0.2)
        writer.write(web.http(BODY))
        await writer.drain()

    slow_web = new_web(host="127.0.0.2")
    slow_web.answers["/a"] = slow
    web.answers["/a"] = web.http(BODY)
    order: list[str] = []

    async def handle(result: Fetched) -> None:
        order.append("slow" if "127.0.0.2" in result.url else "fast")

    urls = [slow_web.url("/a")] * 40 + [web.url("/a")] * 200
    asyncio.run(fetch_all(urls, FetchOptions(allow_private=True, concurrency=8, per_host=4), handle))
    assert order.count("slow") == 40 and order.count("fast") == 200
    assert order[:200].count("slow") <= 8, "the fast host waited for the slow one"


def test_results_wait_for_the_handler(web: Any) -> None:
    """No more results exist than requests may be under way, however slow the handler is."""
    web.answers["/a"] = web.http(BODY)
    held = most = 0

    async def handle(result: Fetched) -> None:
        nonlocal held, most
        held += 1
        most = max(most, held)
        await asyncio.sleep(0.002)
        held -= 1

    asyncio.run(fetch_all([web.url("/a")] * 100, FetchOptions(allow_private=True, concurrency=4), handle))
    assert most <= 4


def test_error_of_the_handler_stops_the_fetch(web: Any) -> None:
    web.answers["/a"] = web.http(BODY)

    async def handle(result: Fetched) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(fetch_all([web.url("/a")] * 10, FetchOptions(allow_private=True), handle))
