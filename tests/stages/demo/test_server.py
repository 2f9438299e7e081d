from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pyarrow.parquet as pq
import pytest

from stages.demo import faults
from stages.demo.world import World, build_world
from stages.demo.world_server import WorldServer, free_port

SLOW_S = 1.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base_url = f"http://127.0.0.1:{free_port()}"
    return build_world(tmp_path_factory.mktemp("world"), rows=300, base_url=base_url, size=48, slow_s=SLOW_S)


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict]:
    truth, urls = pq.read_table(world.truth).to_pylist(), pq.read_table(world.urls).to_pylist()
    return [{**t, **u} for t, u in zip(truth, urls, strict=True)]


@pytest.fixture(scope="module")
def running(world: World) -> Iterator[WorldServer]:
    with WorldServer(world.folder) as server:
        yield server


@pytest.fixture
def server(running: WorldServer) -> WorldServer:
    running.reset_counters()
    return running


async def outcome(session: aiohttp.ClientSession, url: str) -> tuple[object, bytes]:
    """(status, body), or (the error's class, nothing)."""
    try:
        async with session.get(url, max_redirects=5, timeout=aiohttp.ClientTimeout(total=5)) as answer:
            return answer.status, await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error), b""


def fetch_all(urls: list[str]) -> list[tuple[object, bytes]]:
    async def run() -> list[tuple[object, bytes]]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(outcome(session, url) for url in urls))

    return asyncio.run(run())


def test_each_row_meets_what_was_planted(server: WorldServer, world: World, rows: list[dict]) -> None:
    expected: dict[str, object] = {
        "dead_link_404": 404,
        "http_500": 500,
        "too_many_redirects": aiohttp.TooManyRedirects,
        "short_body": aiohttp.ClientPayloadError,
        "dead_link_dns": aiohttp.ClientConnectorDNSError,
        "dead_link_connect": aiohttp.ClientConnectorError,
    }
    for row, (status, body) in zip(rows, fetch_all([row["url"] for row in rows]), strict=True):
        assert status == expected.get(row["fault"], 200), (row, status)
        if row["fault"] == "empty_body":
            assert body == b""
        elif row["fault"] == "not_an_image":
            assert body.startswith(b"<!DOCTYPE html>")
        elif status == 200:
            assert len(body) > 50
    counted = server.requests()
    for row in rows:
        if row["fault"] == "clean":
            copies = [
                r for r in rows if r["original_row"] == row["row"] and r["fault"] in ("same_url", "duplicate_row")
            ]
            assert counted[row["path"]] == 1 + len(copies)


def test_headers_and_slow_hosts(server: WorldServer, rows: list[dict]) -> None:
    one_of = {fault: next(row["url"] for row in rows if row["fault"] == fault) for fault in {"clean", *faults.FAULTS}}

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(one_of["opted_out"]) as answer:
                assert answer.headers["X-Robots-Tag"] == "noai"
            async with session.get(one_of["clean"]) as answer:
                assert "X-Robots-Tag" not in answer.headers and answer.content_type.startswith("image/")
            async with session.get(one_of["not_an_image"]) as answer:
                assert answer.content_type == "image/jpeg"
            started = time.monotonic()
            async with session.get(one_of["slow_timeout"]) as answer:
                await answer.read()
            assert time.monotonic() - started >= SLOW_S
            with pytest.raises(TimeoutError):
                await session.get(one_of["slow_timeout"], timeout=aiohttp.ClientTimeout(total=SLOW_S / 3))

    asyncio.run(run())


def test_behaviours_change_while_running_and_go_back(server: WorldServer, rows: list[dict]) -> None:
    first, second, third = [row for row in rows if row["fault"] == "clean"][:3]
    planned = fetch_all([first["url"]])[0]
    server.behave(
        {
            first["path"]: {"kind": "sequence", "steps": [{"kind": "status", "status": 503}, {"kind": "reset"}]},
            second["path"]: {"kind": "redirect", "to": third["path"], "status": 307},
        }
    )
    server.reset_counters()
    assert [fetch_all([first["url"]])[0][0] for _ in range(2)] == [503, aiohttp.ServerDisconnectedError]
    assert fetch_all([second["url"]]) == fetch_all([third["url"]])
    counted = server.requests()
    assert (counted[second["path"]], counted[third["path"]]) == (1, 2)
    assert counted[first["path"]] == 3, "aiohttp's client asks once more by itself after a dropped connection"
    server.behave({first["path"]: None, second["path"]: None})
    assert fetch_all([first["url"]])[0] == planned


def test_a_wrong_behaviour_is_refused_with_its_cause(server: WorldServer) -> None:
    async def post(body: dict) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session:
            async with session.post(server.base_url + "/__behave__", json=body) as answer:
                return answer.status, await answer.text()

    assert asyncio.run(post({"/a": {"kind": "vanish"}}))[0] == 400
    status, text = asyncio.run(post({"/a": {"kind": "slow", "seconds": 1, "then": {"kind": "status"}}}))
    assert status == 400 and "'status' needs status" in text
    assert fetch_all([server.base_url + "/a"])[0][0] == 404


def test_the_server_is_quick_enough_not_to_be_the_limit(server: WorldServer, rows: list[dict]) -> None:
    urls = [row["url"] for row in rows if row["fault"] == "clean"]
    fetch_all(urls)
    started = time.monotonic()
    answers = [answer for _ in range(1500 // len(urls)) for answer in fetch_all(urls)]
    rate = len(answers) / (time.monotonic() - started)
    assert all(status == 200 for status, _ in answers)
    assert rate > 400, f"{rate:.0f} requests/s; the bound is loose because tests share their cores"


def test_a_taken_port_and_a_missing_world_are_named(server: WorldServer, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"port {server.port} is taken"):
        WorldServer(server.folder).start()
    with pytest.raises(RuntimeError, match=r"routes\.json is missing"):
        WorldServer(tmp_path, port=free_port()).start()


def test_the_server_ends_with_its_owner_even_if_that_is_killed(world: World) -> None:
    port = free_port()
    script = (
        "import time; from stages.demo.world_server import WorldServer; "
        f"s = WorldServer({str(world.folder)!r}, port={port}); s.start(); "
        "print(s._process.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[3]
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while fetch_all([f"http://127.0.0.1:{port}/x"])[0][0] == 404 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert fetch_all([f"http://127.0.0.1:{port}/x"])[0][0] != 404, f"server {pid} outlived its owner"


def test_stopping_twice_is_harmless_and_the_port_is_free_again(world: World) -> None:
    other = WorldServer(world.folder, port=free_port())
    for _ in range(2):
        other.start()
        assert fetch_all([other.base_url + "/nowhere"])[0][0] == 404
        other.stop()
        other.stop()
