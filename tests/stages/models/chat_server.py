"""A server with OpenAI's chat completions on loopback, for tests that decide what it answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

ANSWER = {"choices": [{"message": {"content": "a red dog"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 4, "prompt_tokens": 50}}


class ChatServer:
    """Answers POST /v1/chat/completions by `answer(body, number of this request)`; keeps bodies, headers, times and the most at a time."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], web.Response] = lambda body, number: web.json_response(ANSWER)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most = self.now = 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def _start(self) -> int:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._serve)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return self.runner.addresses[0][1]

    async def _serve(self, asked: web.Request) -> web.Response:
        body = await asked.json()
        self.bodies.append(body)
        self.headers.append(dict(asked.headers))
        self.times.append(time.monotonic())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.02)
            return self.answer(body, len(self.bodies))
        finally:
            self.now -= 1

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)


def error(status: int, message: str, **headers: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)
