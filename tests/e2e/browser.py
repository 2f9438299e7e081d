"""A headless Chromium driven over the DevTools protocol, which needs no library but aiohttp."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")


def find_chromium() -> str | None:
    """The browser named by CHROMIUM, or the first with a usual name."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Seen:
    """What the browser said of a page: log entries of level error or warning, uncaught exceptions, addresses asked for."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    first_paint_s: float = 0.0


class Browser:
    """`with Browser() as browser: browser.open(path, width)`; then `evaluate`, `screenshot`. Its profile is thrown away."""

    def __init__(self, program: str):
        self.program = program
        self.loop = asyncio.new_event_loop()
        self.numbers = itertools.count(1)
        self.answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.loaded = asyncio.Event()
        self.seen = Seen()

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="pairmill-browser-", ignore_cleanup_errors=True)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--hide-scrollbars", "--disable-dev-shm-usage"]
        command = [self.program, *options, "--remote-debugging-port=0", f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            self._run(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "session"):
            self._run(self._close())
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.loop.close()
        self.folder.cleanup()

    def _run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 90))

    async def _connect(self) -> None:
        port_file, deadline = Path(self.folder.name) / "DevToolsActivePort", time.monotonic() + 60
        while not port_file.is_file() or len(port_file.read_text().split()) < 2:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.program} did not start (exit code {self.process.poll()})")
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(target for target in await answer.json() if target["type"] == "page")
        self.socket = await self.session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self.reader = asyncio.ensure_future(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._send(f"{domain}.enable")

    async def _close(self) -> None:
        if hasattr(self, "reader"):
            self.reader.cancel()
            await self.socket.close()
        await self.session.close()

    async def _read(self) -> None:
        async for message in self.socket:
            told = message.json()
            if "id" in told:
                self.answers.pop(told["id"]).set_result(told)
            else:
                self._event(told["method"], told["params"])

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.seen.problems.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.seen.problems.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.seen.problems.append(f"console: {params['args']}")
        elif method == "Page.javascriptDialogOpening":
            self.seen.problems.append(f"dialog: {params['message']}")
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.seen.requests.append(params["request"]["url"])

    async def _send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.answers[number] = self.loop.create_future()
        await self.socket.send_json({"id": number, "method": method, "params": params})
        told = await self.answers[number]
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return told["result"]

    def open(self, page: Path, width: int, height: int = 900, dark: bool = False) -> Seen:
        """Load a file in a window of `width` CSS pixels; returns what was seen until half a second after it was loaded."""
        return self._run(self._open(page, width, height, dark))

    async def _open(self, page: Path, width: int, height: int, dark: bool) -> Seen:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self._send("Emulation.setDeviceMetricsOverride", **metrics)
        await self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.seen, self.loaded = Seen(), asyncio.Event()
        await self._send("Page.navigate", url=page.resolve().as_uri())
        await self.loaded.wait()
        await asyncio.sleep(0.5)
        paint = "(performance.getEntriesByType('paint').find(e => e.name === 'first-contentful-paint') || {startTime: 0}).startTime"
        self.seen.first_paint_s = await self._evaluate(paint) / 1000
        return self.seen

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page (the protocol may run it where the page's own policy forbids scripts)."""
        return self._run(self._evaluate(expression))

    async def _evaluate(self, expression: str) -> Any:
        told = await self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def screenshot(self, path: Path, height: int = 0, top: int = 0, quality: int = 0) -> None:
        """PNG (JPEG where `quality` is given) of the page from `top` down, `height` pixels or all of it."""
        size = self._run(self._send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        form: dict[str, Any] = {"format": "jpeg", "quality": quality} if quality else {"format": "png"}
        told = self._run(self._send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True, **form))
        path.write_bytes(base64.b64decode(told["data"]))
