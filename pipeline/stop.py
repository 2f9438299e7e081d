"""Ctrl+C and SIGTERM: the first asks the run to stop cleanly, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from pipeline.errors import Interrupted

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Context manager: a signal raises Interrupted inside; whatever then comes out is taken for the interruption.

    (Libraries that poll for signals, such as DuckDB, turn the exception into one of their own.) `asked` tells afterwards.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._ring)
        return self

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            sys.stderr.write("\nstopped at once\n")
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        self.asked = True
        raise Interrupted(signal.Signals(number).name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return self.asked and kind is not None
