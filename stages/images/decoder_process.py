"""The far side of the sandbox: a watcher that forks decoders, sees what kills or holds them, and at once starts the next.

The watcher never touches an image. Each decoder takes requests from the one socket that leads to the worker, leaves word of the
request it is on, reads the image from a slot (a memfd) and writes its answer there. No memory is mapped in common, so that a
decoder that writes wildly harms its own image only. Numpy and codecs are all that is loaded here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from stages.images.decode_tasks import Payload, perform

REQUEST = struct.Struct("<QHQ")  # number, slot, bytes in the slot; the task follows
MAX_MESSAGE = 1 << 16
FIRST_NUMBER = 2
_IDLE, _TAKING = 0, 1  # what a decoder is on, where it is no request

_ROWS_PER_DECODER = 2000  # then it makes room for a fresh one: what codecs leak stays small
_OUT_OF_MEMORY = 86  # exit code
_NOISE_BYTES, _NOISE_SHOWN = 1 << 16, 300
_PR_SET_PDEATHSIG = 1
_WORD = struct.Struct("<Q")
_TIME = struct.Struct("<d")
_LOOK_UP_S = 1.0  # how often the watcher makes sure that the worker lives, should the socket not tell


@dataclass(frozen=True)
class Setup:
    """What the worker hands over: file descriptors, and the limits of one image."""

    connection: int
    slots: list[int]
    decoders: int
    timeout_s: float
    memory_bytes: int
    worker: int


class Board:
    """What each decoder is on, and since when; one writer per line, read by the watcher."""

    def __init__(self) -> None:
        self._file = os.memfd_create("decoder-board")

    def start(self, line: int, number: int) -> None:
        """The time first: a number is never seen with the time of the one before it."""
        os.pwrite(self._file, _TIME.pack(time.monotonic()), line * 16 + 8)
        self.set(line, number)

    def set(self, line: int, number: int) -> None:
        os.pwrite(self._file, _WORD.pack(number), line * 16)

    def read(self, line: int) -> tuple[int, float]:
        """Number of the request, and when it was taken (time.monotonic)."""
        (number,) = _WORD.unpack(os.pread(self._file, 8, line * 16))
        return number, _TIME.unpack(os.pread(self._file, 8, line * 16 + 8))[0] if number >= FIRST_NUMBER else 0.0


@dataclass
class _Decoder:
    line: int
    pid: int
    descriptor: int  # readable once the process has ended
    hung: bool = False


class Watcher:
    """Keeps the decoders running and tells the worker which request ended one."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.connection = socket.socket(fileno=setup.connection)
        self.board = Board()
        self.noise = [_noise_file() for _ in range(setup.decoders)]
        self.poller = select.poll()
        self.poller.register(self.connection, 0)  # hang-up is told unasked; messages are for the decoders
        self.decoders: dict[int, _Decoder] = {}

    def run(self) -> None:
        """Until the worker is gone, or word of a request may have been lost (the worker then starts anew)."""
        for line in range(self.setup.decoders):
            self._start(line)
        while os.getppid() == self.setup.worker:
            events = {descriptor for descriptor, _ in self.poller.poll(1000 * self._patience())}
            if self.connection.fileno() in events:
                break
            for decoder in [self.decoders[descriptor] for descriptor in events]:
                if not self._replace(decoder):
                    return self._end()
            self._end_hung_ones()
        self._end()

    def _patience(self) -> float:
        """Seconds until a decoder may be over its time: one that is idle now may start at any moment."""
        now, limit = time.monotonic(), self.setup.timeout_s
        since = [self.board.read(decoder.line) for decoder in self.decoders.values() if not decoder.hung]
        waits = [started + limit - now if number >= FIRST_NUMBER else limit for number, started in since]
        return max(0.0, min([*waits, _LOOK_UP_S])) + 0.001

    def _end_hung_ones(self) -> None:
        for decoder in self.decoders.values():
            number, started = self.board.read(decoder.line)
            if number >= FIRST_NUMBER and not decoder.hung and time.monotonic() - started >= self.setup.timeout_s:
                os.kill(decoder.pid, signal.SIGKILL)
                decoder.hung = True

    def _start(self, line: int) -> None:
        self.board.set(line, _IDLE)
        watcher = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_decoder(self.setup, self.connection, self.board, line, self.noise[line], watcher)
        decoder = _Decoder(line, pid, os.pidfd_open(pid))
        self.decoders[decoder.descriptor] = decoder
        self.poller.register(decoder.descriptor, select.POLLIN)

    def _replace(self, decoder: _Decoder) -> bool:
        """Take leave of a decoder that has ended and start the next. False where it may have taken a request unseen."""
        status = os.waitstatus_to_exitcode(os.waitpid(decoder.pid, 0)[1])
        self.poller.unregister(decoder.descriptor)
        os.close(decoder.descriptor)
        del self.decoders[decoder.descriptor]
        number, _ = self.board.read(decoder.line)
        if number == _TAKING:
            return False
        if number == _IDLE and status != 0:
            raise SystemExit(f"a decoder could not start: {self._written(decoder.line)}")
        if number >= FIRST_NUMBER:
            end, detail = self._what_happened(decoder, status)
            self.connection.send(json.dumps({"number": number, "end": end, "detail": detail}).encode())
        self._start(decoder.line)
        return True

    def _what_happened(self, decoder: _Decoder, status: int) -> tuple[str, str]:
        """Kind of end (hung, memory, killed, crashed) and its detail, with the last that the codec wrote."""
        written = self._written(decoder.line)
        said = f": {' | '.join(written.splitlines()[-3:])[-_NOISE_SHOWN:]}" if written else ""
        if decoder.hung:
            return "hung", f"no picture within {self.setup.timeout_s:g} s"
        if status == _OUT_OF_MEMORY or "bad_alloc" in written:
            return "memory", f"needs more than {self.setup.memory_bytes >> 20} MB to decode"
        if status == -signal.SIGKILL:
            return "killed", "the decoder was killed from outside (SIGKILL), most likely for want of memory on this machine"
        if status < 0:
            return "crashed", f"the decoder was ended by {signal.Signals(-status).name}{said}"
        return "crashed", f"the decoder raised {written.splitlines()[-1][-_NOISE_SHOWN:]}" if written else f"the decoder ended with {status}"

    def _written(self, line: int) -> str:
        """What came to standard error since the decoder took its last request."""
        return os.pread(self.noise[line], os.lseek(self.noise[line], 0, os.SEEK_CUR), 0).decode("utf-8", "replace").strip()

    def _end(self) -> None:
        for decoder in self.decoders.values():
            os.kill(decoder.pid, signal.SIGKILL)


def _noise_file() -> int:
    """A file for what codecs write to standard error. It cannot grow, so that endless warnings fill no memory."""
    import fcntl

    descriptor = os.memfd_create("decoder-noise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _NOISE_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


def _run_decoder(setup: Setup, connection: socket.socket, board: Board, line: int, noise: int, watcher: int) -> None:
    """The whole life of a decoder; never returns."""
    status = 1
    try:
        os.dup2(noise, 2)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == watcher:
            _limit_memory(setup.memory_bytes)
            _serve(setup, connection, board, line)
        status = 0
    except MemoryError:
        status = _OUT_OF_MEMORY
    except BaseException:
        os.lseek(2, 0, os.SEEK_SET)  # room, should the codec's noise have filled the file
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def _limit_memory(more: int) -> None:
    """Private memory of this process: what it has now and `more` bytes. Its own end comes before that of the worker."""
    page = resource.getpagesize()
    with open("/proc/self/statm", encoding="ascii") as file:
        sizes = file.read().split()
    whole, data = int(sizes[0]) * page, int(sizes[5]) * page
    resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))
    resource.setrlimit(resource.RLIMIT_AS, (whole + 2 * more, whole + 2 * more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _serve(setup: Setup, connection: socket.socket, board: Board, line: int) -> None:
    for _ in range(_ROWS_PER_DECODER):
        board.set(line, _TAKING)
        message = connection.recv(MAX_MESSAGE)
        if not message:
            break
        number, slot, size = REQUEST.unpack_from(message)
        board.start(line, number)
        os.lseek(2, 0, os.SEEK_SET)
        facts, payload = perform(message[REQUEST.size :], os.pread(setup.slots[slot], size, 0))
        facts["bytes"] = _write(setup.slots[slot], payload)
        facts["number"] = number
        connection.send(json.dumps(facts).encode())
    board.set(line, _IDLE)


def _write(slot: int, payload: Payload) -> int:
    """Put an answer into the slot, in place of what was asked. Bytes written."""
    view = memoryview(payload).cast("B") if len(payload) else memoryview(b"")
    done = 0
    while done < len(view):
        done += os.pwrite(slot, view[done:], done)
    return len(view)


def main(setup: dict[str, Any]) -> None:
    """Entry of the process: `setup` holds the fields of Setup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the worker, whose end ends this
    Watcher(Setup(**setup)).run()
    sys.exit(0)
