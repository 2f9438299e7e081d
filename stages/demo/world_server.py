"""Starting and stopping the rendered web's server in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import stages
from stages.demo.serving import Behaviour
from stages.demo.world import load_world

_OPENER: Final = build_opener(ProxyHandler({}))  # loopback is never asked through a proxy


def free_port() -> int:
    """A loopback port that was free a moment ago; choose it before the world is built, its URLs hold it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class WorldServer:
    """Context manager: serves a world's folder on the port that its URLs name.

    Raises (on entering):
        RuntimeError: the port is taken, or the server ended or did not answer within `start_timeout_s`.
    """

    def __init__(self, folder: Path | str, port: int | None = None, start_timeout_s: float = 30.0) -> None:
        self.folder = Path(folder)
        self.port = load_world(folder).port if port is None else port
        self.start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> WorldServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server's process and wait until it answers."""
        if self._port_answers():
            raise RuntimeError(f"port {self.port} is taken; choose another with free_port() and build the world for it")
        self._errors = tempfile.TemporaryFile()
        # started from the folder above the package, so that it is found without being installed
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages.demo.server", str(self.folder.resolve())]
            + ["--port", str(self.port), "--while-parent", str(os.getpid())],
            cwd=Path(str(stages.__file__)).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        deadline = time.monotonic() + self.start_timeout_s
        while not self._port_answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                ended = self._process.poll()
                self.stop()
                raise RuntimeError(
                    f"the demo's server for {self.folder} did not answer on port {self.port} "
                    f"(exit status {ended}): {self._said()}"
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server's process; a second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def requests(self) -> dict[str, int]:
        """Requests answered so far per path."""
        return dict(self._ask("/__requests__"))

    def behave(self, behaviours: dict[str, Behaviour | None]) -> None:
        """Change what paths answer while the server runs; None puts the planned behaviour back."""
        self._ask("/__behave__", behaviours)

    def reset_counters(self) -> None:
        """Set all request counters to zero."""
        self._ask("/__reset__", {})

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.base_url + path, data=data, headers={"Content-Type": "application/json"})
        with _OPENER.open(request, timeout=10) as answer:
            return dict(json.load(answer))

    def _port_answers(self) -> bool:
        try:
            with _OPENER.open(self.base_url + "/__requests__", timeout=2):
                return True
        except (URLError, ConnectionError, TimeoutError):
            return False

    def _said(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:].strip()
