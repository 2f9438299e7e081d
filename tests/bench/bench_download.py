"""Rows per second of the download stage against a bare aiohttp loop, same server on loopback in a process of its own.

    python tests/bench/bench_download.py [--rows 5000] [--check header|decode] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import pstats
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np
import simplejpeg

from pipeline.blobs import BlobWriter
from pipeline.stage import Context
from stages.download import Download


class _Server(asyncio.Protocol):
    """The least HTTP that a client accepts: keep-alive, one answer per request, body by the number in the path."""

    answers: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            number = int(head.split(b" ", 2)[1].lstrip(b"/"))
            self.transport.write(self.answers[number % len(self.answers)])


def jpegs(count: int = 200) -> list[bytes]:
    """Smooth random pictures that compress to 5 to 20 KB."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        side = int(rng.integers(200, 420))
        small = rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        made.append(simplejpeg.encode_jpeg(np.ascontiguousarray(small.repeat(8, 0).repeat(8, 1)), quality=80))
    return made


def serve(port_pipe) -> None:
    _Server.answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data for data in jpegs()
    ]

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
        port_pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def bare(urls: list[str], concurrency: int) -> int:
    """The ceiling: one session, the same number of requests under way, bodies read and thrown away."""
    waiting, total = iter(urls), 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal total
        for url in waiting:
            async with session.get(url) as response:
                total += len(await response.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[work(session) for _ in range(concurrency)])
    return total


def staged(urls: list[str], concurrency: int, check: str, resize_mode: str) -> None:
    params = Download.Params(
        concurrency=concurrency, per_host=concurrency, allow_private=True, check=check, resize_mode=resize_mode, image_size=128
    )
    rows = [{"url": url, "sample_id": at.to_bytes(16, "big")} for at, url in enumerate(urls)]
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context("download", 0, blobs=BlobWriter(Path(folder), 0))
        results = Download(params).compute(rows, ctx)
    assert all(isinstance(result, dict) for result in results), results[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--check", default="decode", choices=["decode", "header"])
    parser.add_argument("--resize-mode", default="no")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    sizes = [len(data) for data in jpegs()]
    print(f"bodies {min(sizes)} to {max(sizes)} bytes, mean {sum(sizes) / len(sizes):.0f}")
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(options.rows)]
    asyncio.run(bare(urls[:500], options.concurrency))
    for _ in range(3):
        started = time.perf_counter()
        asyncio.run(bare(urls, options.concurrency))
        ceiling = options.rows / (time.perf_counter() - started)
        started = time.perf_counter()
        staged(urls, options.concurrency, options.check, options.resize_mode)
        rate = options.rows / (time.perf_counter() - started)
        print(f"bare aiohttp {ceiling:.0f} rows/s, stage ({options.check}) {rate:.0f} rows/s, ratio {rate / ceiling:.2f}")
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(staged, urls, options.concurrency, options.check, options.resize_mode)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    server.terminate()


if __name__ == "__main__":
    main()
