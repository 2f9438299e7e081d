"""Proxies, headers from the environment, and what the address check means behind a proxy."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.images import web_client
from stages.images.fetch import Fetched, FetchOptions, fetch_all
from stages.images.web_client import with_environment

BODY = b"some bytes of an image"


def get(url: str, **options: Any) -> Fetched:
    found: list[Fetched] = []

    async def handle(result: Fetched) -> None:
        found.append(result)

    asyncio.run(fetch_all([url], FetchOptions(**{"timeout_s": 2.0, "retries": 0, **options}), handle))
    return found[0]


class TunnelProxy:
    """An HTTP proxy that only tunnels: connects where CONNECT says and passes bytes on."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self.serve, "127.0.0.1", 0), self.loop).result(5)
        self.url = f"http://user:secret@127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(self.copy(reader, far_writer), self.copy(far_reader, writer))

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)


@pytest.fixture
def tunnel() -> Iterator[TunnelProxy]:
    made = TunnelProxy()
    yield made
    made.close()


@pytest.fixture
def tls_web(new_web: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    subprocess.run([*command, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    web_client.tls_context.cache_clear()
    yield new_web(tls=context)
    web_client.tls_context.cache_clear()


def test_http_goes_through_the_proxy_in_absolute_form(web: Any) -> None:
    """The proxy stands on a private address and the name is known to it alone: neither stops a fetch."""
    web.answers["http://pictures.invalid/a.jpg"] = web.http(BODY)
    assert get("http://pictures.invalid/a.jpg", proxy=web.url("")).body == BODY


def test_https_goes_through_a_tunnel_with_the_credentials(tunnel: TunnelProxy, tls_web: Any) -> None:
    tls_web.answers["/a"] = tls_web.http(BODY)
    assert get(tls_web.url("/a"), proxy=tunnel.url, allow_private=True).body == BODY
    assert tunnel.heads[0].startswith(f"CONNECT 127.0.0.1:{tls_web.port} ".encode())
    assert b"proxy-authorization: basic dXNlcjpzZWNyZXQ=".lower() in tunnel.heads[0].lower()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:10.0.0.1]", "10.1.2.3", "169.254.169.254"])
def test_private_targets_are_refused_before_the_proxy_is_asked(web: Any, host: str) -> None:
    result = get(f"http://{host}/a", proxy=web.url(""))
    assert result.failure is not None and result.failure.code == "blocked_address"
    assert web.connections == 0


def test_redirect_to_a_private_target_is_refused_behind_a_proxy(web: Any) -> None:
    web.answers["http://pictures.invalid/a"] = web.http(b"", "302 Found", location="http://169.254.169.254/latest")
    result = get("http://pictures.invalid/a", proxy=web.url(""))
    assert result.failure is not None and result.failure.code == "blocked_address"
    assert list(web.asked) == ["http://pictures.invalid/a"]


def test_proxy_of_the_environment_only_where_it_is_trusted(web: Any, new_web: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = new_web()
    proxy.answers[web.url("/a")] = proxy.http(b"by proxy")
    web.answers["/a"] = web.http(b"direct")
    monkeypatch.setenv("http_proxy", proxy.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    assert get(web.url("/a"), allow_private=True).body == b"direct"
    assert get(web.url("/a"), allow_private=True, trust_env=True).body == b"by proxy"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(web.url("/a"), allow_private=True, trust_env=True).body == b"direct"


def test_a_proxy_that_refuses_or_is_not_there_is_connect(web: Any, tls_web: Any) -> None:
    web.answers[f"127.0.0.1:{tls_web.port}"] = web.http(b"", "407 Proxy Authentication Required")
    for proxy in (web.url(""), "http://127.0.0.1:1"):
        result = get(tls_web.url("/a"), proxy=proxy, allow_private=True)
        assert result.failure is not None and result.failure.code == "connect"


def test_headers_are_sent_and_may_replace_our_own(web: Any) -> None:
    web.answers["/a"] = web.http(BODY)
    get(web.url("/a"), allow_private=True, headers={"Authorization": "Bearer x", "Accept": "image/webp"})
    head = web.heads["/a"].lower()
    assert b"authorization: bearer x\r\n" in head and b"accept: image/webp\r\n" in head and head.count(b"\r\naccept:") == 1


def test_values_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_A", "se$cret")
    assert with_environment("Bearer ${TOKEN_A}, $5", "here") == "Bearer se$cret, $5"
    with pytest.raises(ValueError, match="here: the environment variable TOKEN_B is not set"):
        with_environment("${TOKEN_B}", "here")
