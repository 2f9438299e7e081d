"""An asyncio loop in a thread of its own, for engines and servers that are asked asynchronously from plain code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

Made = TypeVar("Made")


class LoopThread:
    """Runs coroutines; any thread may hand one in."""

    def __init__(self, name: str):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name=name, daemon=True).start()

    def submit(self, coroutine: Coroutine[Any, Any, Made]) -> Future[Made]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def gather(self, coroutines: Iterable[Coroutine[Any, Any, Made]]) -> list[Made]:
        """Results in order, once all have ended. Raises the first error."""
        futures = [self.submit(coroutine) for coroutine in coroutines]
        for future in futures:
            future.exception()  # wait for each, so that none is left running
        return [future.result() for future in futures]
