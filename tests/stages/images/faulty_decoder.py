"""A program for the sandbox's processes: the real one, but images that end in a mark make the codec fail in the marked way."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

from stages.images import decoder_process
from stages.images.decode_tasks import perform as real_perform


def segfault() -> None:
    ctypes.string_at(0)


def allocate() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(1 << 24))


def allocate_unchecked() -> None:
    """As C code does that takes what malloc gives for granted."""
    ctypes.CDLL(None).malloc.restype = ctypes.c_void_p
    while True:
        ctypes.memset(ctypes.CDLL(None).malloc(ctypes.c_size_t(1 << 26)), 1, 1 << 26)


def sleep() -> None:
    time.sleep(3600)


def spin() -> None:
    while True:
        pass


def die_once() -> None:
    """As from the kernel's out-of-memory killer, the first time only. The mark of the first time is a file beside this one's log."""
    once = os.environ["PYTHON_TEST_ONCE"]
    if not os.path.exists(once):
        open(once, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


def babble() -> None:
    """As libtiff does, without a look at what becomes of it."""
    for number in range(20_000):
        line = b"TIFFReadDirectory: Warning, Unknown field with tag %d.\n" % number
        ctypes.CDLL(None).write(2, line, len(line))


def abort() -> None:
    os.write(2, b"codec.c:12: decode: Assertion `rows > 0' failed.\n")
    os.abort()


def undeclared() -> None:
    raise KeyError("no such table")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    f"#{fault.__name__}".encode(): fault
    for fault in (segfault, allocate, allocate_unchecked, sleep, spin, die_once, die, babble, abort, undeclared)
}


def perform(task: bytes, data: bytes) -> Any:
    mark = data[data.rfind(b"#") :] if b"#" in data[-30:] else b""
    if mark in FAULTS:
        FAULTS[mark]()
    return real_perform(task, data)


def main(setup: dict[str, Any]) -> None:
    decoder_process.perform = perform
    decoder_process.main(setup)
