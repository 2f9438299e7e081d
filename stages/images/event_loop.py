"""The event loop that stages run their requests in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run on asyncio's own loop.

    Ray's workers make uvloop the default where it is installed (vLLM brings it). Its transports and errors are others, and a row's outcome
    must not depend on what else is installed.
    """
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(work)
