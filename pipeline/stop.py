"""Ctrl+C and SIGTERM: the first asks the run to stop cleanly, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

import psutil

from pipeline.errors import Interrupted

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_blocks = 0  # of `undisturbed` that are open
_put_off = ""  # name of a signal that came meanwhile


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block a first signal raises nothing, so that what ends a run is carried to its end. It raises Interrupted behind the block,
    unless another exception is on its way there. For the main thread; without StopOnSignal around it nothing is changed."""
    global _blocks, _put_off
    on_its_way = sys.exc_info()[0] is not None
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
    if _put_off and not _blocks and not on_its_way:
        name, _put_off = _put_off, ""
        raise Interrupted(name)


class StopOnSignal:
    """Context manager: a signal raises Interrupted inside; whatever then comes out is taken for the interruption.

    (Libraries that poll for signals, such as DuckDB, turn the exception into one of their own.) `asked` tells afterwards.
    """

    def __init__(self) -> None:
        self.asked = False
        self._came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        global _put_off
        _put_off = ""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._ring)
        return self

    def _ring(self, number: int, frame: FrameType | None) -> None:
        global _put_off
        if self._came:
            sys.stderr.write("\nstopped at once; the same command goes on with what is committed\n")
            sys.stderr.flush()
            _end_children()
            os._exit(EXIT_INTERRUPTED)
        self._came = True
        if _blocks:
            _put_off = signal.Signals(number).name
            return
        self.asked = True
        raise Interrupted(signal.Signals(number).name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.asked |= isinstance(error, Interrupted)
        if not self.asked:  # else the process ends soon, and a second signal still ends it at once
            for number, handler in self._before.items():
                signal.signal(number, handler)
        return self.asked and kind is not None


def _end_children() -> None:
    """Kill all that this process started: left alone, the agents of a Ray that it started live on for a minute."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
