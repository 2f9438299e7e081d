"""A real web server on loopback whose answers are raw bytes, so that every way of failing can be shown."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Answer = bytes | Callable[[asyncio.StreamWriter, int], Awaitable[None]]


def jpeg_bytes(width: int = 64, height: int = 48, seed: int = 0, **options: object) -> bytes:
    """A JPEG with structure: a coarse random pattern."""
    coarse = np.random.default_rng(seed).integers(0, 255, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


class Web:
    """Serves `answers[path]` (bytes, or a coroutine that writes and may misbehave); counts requests and open connections."""

    @staticmethod
    def http(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
        """A whole response; header names with '_' for '-'. Content-Length is added unless given."""
        lines = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        lines.setdefault("content-length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body

    @staticmethod
    def abort(writer: asyncio.StreamWriter) -> None:
        """Close with a TCP reset instead of an end."""
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"):
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.heads: dict[str, bytes] = {}
        self.connections = 0
        self.running: Counter[str] = Counter()
        self.most_running: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, host, 0, ssl=tls)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(5)
        self.host = host
        self.port = self._server.sockets[0].getsockname()[1]
        self.scheme = "https" if tls else "http"

    def url(self, path: str) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                self.asked[path] += 1
                self.heads[path] = head
                self.running["all"] += 1
                self.most_running["all"] = max(self.most_running["all"], self.running["all"])
                try:
                    await self._answer(path, writer)
                finally:
                    self.running["all"] -= 1
        except (asyncio.IncompleteReadError, OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        answer = self.answers.get(path, self.http(b"no such page", "404 Not Found"))
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
        else:
            await answer(writer, self.asked[path])

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            current = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not current:
                    task.cancel()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


@pytest.fixture
def new_web() -> Iterator[Callable[..., Web]]:
    """Makes servers that are closed after the test: options tls, host."""
    made: list[Web] = []

    def make(**options: Any) -> Web:
        made.append(Web(**options))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """Makes JPEG bytes: width, height, seed, and options of Pillow's writer."""
    return jpeg_bytes


@pytest.fixture
def web(new_web: Callable[..., Web]) -> Web:
    return new_web()


@pytest.fixture
def photos() -> list[Path]:
    """Real photos; the folder is named by PAIRMILL_TEST_DATA."""
    folder = os.environ.get("PAIRMILL_TEST_DATA")
    if not folder:
        pytest.skip("PAIRMILL_TEST_DATA names no folder of real photos")
    found = sorted(Path(folder, "photos_open").rglob("*.jpg"))
    assert found, f"{folder}/photos_open holds no photos"
    return found


@pytest.fixture(scope="session")
def tiny_mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2-VL made from a config."""
    pytest.importorskip("transformers")
    from tests.stages.models.tiny_qwen2_vl import save_tiny_qwen2_vl

    return save_tiny_qwen2_vl(tmp_path_factory.mktemp("mllm") / "tiny-qwen2-vl")


@pytest.fixture(scope="session")
def vllm_spec(tiny_mllm: Path) -> dict[str, Any]:
    """Entry of a models table for the one vLLM of a test run: runs in this process that name it share its engine."""
    pytest.importorskip("vllm")
    options = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True, "processor_cache_gb": 0.25}
    return {"kind": "vllm", "weights": str(tiny_mllm), **options}


@pytest.fixture(scope="session")
def vllm_server(vllm_spec: dict[str, Any]) -> Iterator[str]:
    """URL of vLLM's own OpenAI server, put before the engine that the other tests use; its model is called 'served'."""
    from tests.stages.models.vllm_serving import serving

    with serving(vllm_spec) as url:
        yield url
