"""The command `pairmill` from its first moment to its last: a signal while it is loaded, or once its exit code stands, ends it without a traceback."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Entry point of the console script, and of `python -m pipeline`."""
    atexit.register(_deaf)  # first, and so called last
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code: object = EXIT_INTERRUPTED
    try:
        from pipeline.cli import main as command  # takes a second

        command()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        pass
    _end(code)


def _end(code: object) -> None:
    """Exit; a signal from here on only makes it quicker."""
    with suppress(OSError, ValueError):  # whoever reads has gone, or the stream is closed
        sys.stdout.flush()
        sys.stderr.flush()

    def at_once(number: int, frame: FrameType | None) -> None:
        os._exit(code if isinstance(code, int) else int(code is not None))

    for number in SIGNALS:
        signal.signal(number, at_once)
    raise SystemExit(code)


def _deaf() -> None:
    """Python's own end takes our handlers away: a signal would then replace the exit code by its own."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
