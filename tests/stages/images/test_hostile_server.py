"""One table of all that a hostile server does, fetched at once by the download stage: each row has its reason, the good ones are kept."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from pipeline.blobs import BlobWriter
from pipeline.stage import Context
from schemas.outcome import Failure
from stages.download import Download
from stages.images import addresses, web_client
from stages.images.fetch import Fetched, FetchOptions, fetch_all

CA_CONFIG = """
[ca]
default_ca = this
[this]
database = {folder}/index.txt
new_certs_dir = {folder}
serial = {folder}/serial
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = {name}
"""


def certificate(folder: Path, name: str = "IP:127.0.0.1", end: str = "20990101000000Z") -> Path:
    """A self-signed certificate with its key in one file. `openssl ca` alone lets one choose the dates."""
    folder.mkdir()
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01")
    (folder / "ca.cnf").write_text(CA_CONFIG.format(folder=folder, name=name))
    key, request, made = folder / "key.pem", folder / "request.pem", folder / "cert.pem"
    ask = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={folder.name}"]
    sign = ["openssl", "ca", "-selfsign", "-batch", "-notext", "-config", folder / "ca.cnf", "-in", request, "-keyfile", key]
    for command in (ask, [*sign, "-startdate", "20200101000000Z", "-enddate", end, "-out", made]):
        subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(key.read_text() + made.read_text())
    return both


@pytest.fixture
def tls_urls(new_web: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: Callable[..., bytes]) -> Any:
    """URL of a good image on a server with each kind of certificate; all but the self-signed one are trusted."""
    made = {
        "good": certificate(tmp_path / "good"), "self-signed": certificate(tmp_path / "alone"),
        "expired": certificate(tmp_path / "expired", end="20200201000000Z"), "wrong host": certificate(tmp_path / "wrong", name="DNS:example.org"),
    }  # fmt: skip
    trusted = tmp_path / "trusted.pem"
    trusted.write_text("".join((made[kind].parent / "cert.pem").read_text() for kind in made if kind != "self-signed"))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    web_client.tls_context.cache_clear()
    urls = {}
    for kind, both in made.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        server = new_web(tls=context)
        server.answers["/a"] = server.http(jpeg())
        urls[kind] = server.url("/a")
    yield urls
    web_client.tls_context.cache_clear()


def raw(*pieces: bytes, pause_s: float = 0.0, close: bool = True) -> Callable[..., Any]:
    """An answer of these bytes, with a pause after each piece, and then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if close:
            writer.close()

    return answer


def in_turn(*answers: bytes) -> Callable[..., Any]:
    """The n-th request gets the n-th answer, the last one repeats."""

    async def answer(writer: asyncio.StreamWriter, times: int) -> None:
        writer.write(answers[min(times, len(answers)) - 1])
        await writer.drain()

    return answer


def endless(head: bytes, piece: bytes) -> Callable[..., Any]:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()

    return answer


def test_every_hostile_answer_has_its_reason(
    web: Any, new_web: Callable[..., Any], tls_urls: dict[str, str], jpeg: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, image = web.http, jpeg(200, 200)
    inner = new_web(host="127.0.0.2")
    inner.answers["/secret"] = http(image)
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")

    async def reset(writer: asyncio.StreamWriter, _: int) -> None:
        web.abort(writer)

    async def reset_in_body(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(http(image[:500], content_length=str(len(image))))
        await writer.drain()
        await asyncio.sleep(0.05)
        web.abort(writer)

    in_a_second = formatdate(time.time() + 2, usegmt=True)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    #  what the server does: (answer, outcome, what the detail must name)
    table: dict[str, tuple[Any, str, str]] = {
        "good": (http(image), "ok", ""),
        "slow drip": (raw(http(b"", content_length="9999"), *[b"x"] * 200, pause_s=0.05), "timeout", "within 1 s"),
        "silence": (raw(b"", pause_s=20), "timeout", "within 1 s"),
        "drip of headers": (raw(b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 200, pause_s=0.05), "timeout", "within 1 s"),
        "endless body": (endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), "too_large", "100000"),
        "endless chunks": (endless(chunked, b"1000\r\n" + b"x" * 4096 + b"\r\n"), "too_large", "100000"),
        "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 60000), "bad_response", ""),
        "endless status line": (endless(b"HTTP/1.1 200 ", b"O" * 60000), "bad_response", ""),
        "length says more than comes": (raw(http(image, content_length=str(len(image) + 1000))), "short_body", ""),
        "length says less than comes": (raw(http(image, content_length="1000")), "corrupt_image", "200"),
        "length is no number": (raw(http(image, content_length="many")), "bad_response", ""),
        "length is negative": (raw(http(image, content_length="-5")), "bad_response", ""),
        "announced as huge": (http(b"", content_length="99999999999"), "too_large", "100000"),
        "chunk of no size": (raw(chunked + b"zz\r\nabc\r\n0\r\n\r\n"), "bad_response", ""),
        "chunk of no size, later": (raw(chunked, b"3\r\nabc\r\n", b"zz\r\n", pause_s=0.1), "bad_response", "size"),
        "chunk longer than it says": (raw(chunked + b"3\r\nabcdef\r\n0\r\n\r\n"), "bad_response", "longer"),
        "two lengths": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), "bad_response", "Length"),
        "chunks that end early": (raw(chunked, b"ff\r\nabc"), "short_body", ""),
        "bomb": (http(gzip.compress(bytes(30_000_000)), content_encoding="gzip"), "too_large", "100000"),
        "not the encoding it names": (http(image, content_encoding="gzip"), "bad_response", "gzip"),
        "redirect loop": (http(b"", "302 Found", location="/redirect%20loop"), "too_many_redirects", "more than 5"),
        "redirect to a private address": (http(b"", "302 Found", location=inner.url("/secret")), "blocked_address", "127.0.0.2"),
        "redirect to a file": (http(b"", "302 Found", location="file:///etc/passwd"), "blocked_address", "redirect from"),
        "redirect to no URL": (http(b"", "302 Found", location="http://[::1/"), "bad_response", "redirect"),
        "404": (http(b"", "404 Not Found"), "http_4xx", "404"),
        "410": (http(b"", "410 Gone"), "http_4xx", "410"),
        "429 with seconds, then well": (in_turn(http(b"", "429 Slow", retry_after="1"), http(image)), "ok", ""),
        "503 with a date, then well": (in_turn(http(b"", "503 Busy", retry_after=in_a_second), http(image)), "ok", ""),
        "500, then well": (in_turn(http(b"", "500 Oops"), http(image)), "ok", ""),
        "500 for ever": (http(b"", "500 Oops"), "http_5xx", "500"),
        "reset": (reset, "reset", ""),
        "reset in the body": (reset_in_body, "reset", ""),
        "end without a word": (raw(b""), "reset", ""),
        "HTML": (http(b"<!DOCTYPE html><p>gone", content_type="text/html"), "not_an_image", "text/html"),
        "HTML that says it is an image": (http(b"<html>gone", content_type="image/jpeg"), "not_an_image", "image/jpeg"),
        "image that says it is HTML": (http(image, content_type="text/html"), "ok", ""),
        "empty body": (http(b""), "empty_body", "200"),
        "wrong charset": (raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg; charset=utf-99\r\nX-Title: caf\xe9 \xff\xfe\r\n\r\n" + image), "ok", ""),
        "bytes that are no text in the type": (raw(b"HTTP/1.1 200 OK\r\nContent-Type: caf\xe9\xff\r\n\r\n" + image), "ok", ""),
        "another protocol": (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "bad_response", ""),
        "broken header": (raw(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n" + image), "bad_response", ""),
        "status that is no number": (raw(b"HTTP/1.1 abc OK\r\n\r\n"), "bad_response", ""),
    }  # fmt: skip
    web.answers = {f"/{name}".replace(" ", "%20"): answer for name, (answer, _, _) in table.items()}
    wanted = {web.url(f"/{name}"): (code, names) for name, (_, code, names) in table.items()}
    wanted |= {tls_urls["good"]: ("ok", ""), tls_urls["self-signed"]: ("tls", "self-signed"), tls_urls["expired"]: ("tls", "expired")}
    wanted |= {tls_urls["wrong host"]: ("tls", "mismatch")}
    results = run_stage(tmp_path, list(wanted))
    found = {url: (result.code, result.detail) if isinstance(result, Failure) else ("ok", "") for url, result in zip(wanted, results, strict=True)}
    assert {url: code for url, (code, _) in found.items()} == {url: code for url, (code, _) in wanted.items()}
    for url, (code, names) in wanted.items():
        assert names in found[url][1], found[url]
        assert code == "ok" or found[url][1], url
    assert inner.connections == 0


def run_stage(folder: Path, urls: list[str]) -> list[Any]:
    # retries 1: what passes comes well at the second try; the host paused by 429 and 503 is shared by all rows here
    stage = Download(Download.Params(timeout_s=1.0, retries=1, max_bytes=100_000, per_host=64))
    rows = [{"url": url, "sample_id": at.to_bytes(16, "big")} for at, url in enumerate(urls)]
    blobs = BlobWriter(folder, 0)
    results = stage.compute(rows, Context("download", 0, blobs=blobs))
    blobs.finish()
    return results


def test_ten_thousand_rows_on_a_slow_host_do_not_hold_up_the_others(web: Any, new_web: Callable[..., Any]) -> None:
    class FastAreDone(Exception):
        pass

    async def slow(writer: asyncio.StreamWriter, _: int) -> None:
        await asyncio.sleep(0.5)
        writer.write(web.http(b"slow"))
        await writer.drain()

    slow_web = new_web(host="127.0.0.2")
    slow_web.answers["/a"] = slow
    web.answers["/a"] = web.http(b"fast")
    seen = {b"slow": 0, b"fast": 0}

    async def handle(result: Fetched) -> None:
        seen[result.body] += 1
        if seen[b"fast"] == 500:
            raise FastAreDone

    urls = [slow_web.url("/a")] * 9_000 + [web.url("/a")] * 500 + [slow_web.url("/a")] * 1_000
    started = time.monotonic()
    with pytest.raises(FastAreDone):
        asyncio.run(fetch_all(urls, FetchOptions(allow_private=True, timeout_s=10), handle))
    took = time.monotonic() - started
    assert seen[b"slow"] <= 16 * (1 + took / 0.5), "the slow host had more than its 16 at a time"
    assert seen[b"slow"] < 200 and took < 10


def test_a_host_that_never_answers_is_given_up(web: Any) -> None:
    async def silent(writer: asyncio.StreamWriter, _: int) -> None:
        await asyncio.sleep(20)

    web.answers["/a"] = silent
    codes: list[str] = []

    async def handle(result: Fetched) -> None:
        assert result.failure is not None
        codes.append(result.failure.code if "not asked again" in result.failure.detail else "tried")

    options = FetchOptions(allow_private=True, timeout_s=0.1, retries=0, per_host=4, give_up_host_after=8)
    asyncio.run(fetch_all([web.url("/a")] * 2_000, options, handle))
    assert 8 <= codes.count("tried") <= 12 and codes.count("timeout") == 2_000 - codes.count("tried")
    assert web.asked["/a"] <= 12


def test_a_host_that_asks_for_too_long_a_pause_is_not_waited_for(web: Any) -> None:
    web.answers["/a"] = web.http(b"", "429 Slow", retry_after="3600")
    codes: list[str] = []

    async def handle(result: Fetched) -> None:
        assert result.failure is not None
        codes.append(result.failure.code)

    started = time.monotonic()
    asyncio.run(fetch_all([web.url("/a")] * 100, FetchOptions(allow_private=True, retries=3, per_host=4), handle))
    assert codes == ["rate_limited"] * 100 and web.asked["/a"] <= 4 and time.monotonic() - started < 5


def test_an_outage_stops_the_fetch_at_once(web: Any) -> None:
    class Stop(Exception):
        pass

    told: list[str] = []

    async def handle(result: Fetched) -> None:
        told.append(result.failure.code if result.failure else "")
        if len(told) >= 20:
            raise Stop

    with pytest.raises(Stop):
        asyncio.run(fetch_all([f"http://127.0.0.{n}:1/" for n in range(1, 200)], FetchOptions(allow_private=True, retries=0), handle))
    assert set(told) == {"connect"} and len(told) < 100
