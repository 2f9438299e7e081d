"""The near side of the sandbox: images go to decoder processes, and what happens there costs the one image.

Requests wait in one socket that all decoders take from, so that none of them idles while another is held up. Bodies and answers
lie in slots: memfds that vanish with the last process that holds them. See `stages/images/decoder_process.py` for the far side.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode, cap_detail
from stages.images.buffers import Bytes
from stages.images.decode_tasks import Facts
from stages.images.decoder_process import FIRST_NUMBER, MAX_MESSAGE, REQUEST
from stages.images.decoders import DecoderLimits, Decoders, failure_in

PROGRAM = "stages.images.decoder_process"  # the module whose `main` the processes run
_SLOTS_PER_DECODER = 16  # one that is worked on, and work for as long as another thread of the worker may keep the interpreter lock (5 ms)
_KEPT_BYTES = 1 << 20  # a slot that held more gives its memory back
_MOST_TRIES = 3  # of an image whose decoders end and none can say that it was to blame
_BOOT = (
    "import importlib, json, sys; setup = json.loads(sys.argv[1]); sys.path[:] = setup.pop('path'); "
    "importlib.import_module(setup.pop('program')).main(setup)"
)
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LANG", "TZ")
_CODES = {"hung": FailureCode.DECODER_HUNG, "memory": FailureCode.DECODER_MEMORY, "killed": FailureCode.DECODER_MEMORY}


@dataclass(eq=False)
class _Request:
    task: bytes
    data: Bytes
    make: Callable[[Facts, bytes], Any]
    future: Future[Any] = field(default_factory=Future)
    slot: int = -1
    tries: int = 1


class Sandbox(Decoders):
    """Decoders in processes of their own. Safe to use from many threads."""

    def __init__(self, limits: DecoderLimits):
        self.limits = limits
        self._lock = threading.Lock()
        self._numbers = itertools.count(FIRST_NUMBER)
        self._waiting: deque[_Request] = deque()
        self._sent: dict[int, _Request] = {}
        self._closed = False
        self._broken: Fatal | None = None
        self._slots: list[int] = []
        self._launch()
        self._reader = threading.Thread(target=self._read, name="sandbox", daemon=True)
        self._reader.start()
        atexit.register(self.close)

    def submit(self, task: bytes, data: Bytes, make: Callable[[Facts, bytes], Any]) -> Future[Any]:
        request = _Request(task, data, make)
        request.future.set_running_or_notify_cancel()  # it runs to its end, whoever gives up waiting
        with self._lock:
            if self._broken is not None or self._closed:
                raise self._broken or Fatal("the decoders were closed")
            if self._free:
                self._send(request)
            else:
                self._waiting.append(request)
        return request.future

    def close(self) -> None:
        """End the processes. What still waits fails with Fatal."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
        with contextlib.suppress(OSError):  # already gone
            self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)

    @property
    def pid(self) -> int:
        """Process id of the watcher, the parent of the decoders."""
        return self._process.pid

    def held_bytes(self) -> int:
        """Memory that the slots take."""
        with self._lock:
            return sum(os.fstat(slot).st_blocks * 512 for slot in self._slots)

    def _launch(self) -> None:
        """Start the watcher, with slots and a socket of its own: an old one may not yet be gone."""
        self._close_slots()
        count = self.limits.count
        self._slots = [os.memfd_create("decoder-slot") for _ in range(count * _SLOTS_PER_DECODER)]
        self._free = list(range(len(self._slots)))
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._noise = os.memfd_create("watcher-noise")
        self._process_spoke = False
        setup = {
            "path": sys.path, "program": PROGRAM, "connection": theirs.fileno(), "slots": self._slots, "decoders": count,
            "timeout_s": self.limits.timeout_s, "memory_bytes": self.limits.memory_mb << 20, "worker": os.getpid(),
        }  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(setup)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._noise,
                pass_fds=[theirs.fileno(), *self._slots], env=_environment(), start_new_session=True,
            )  # fmt: skip

    def _send(self, request: _Request) -> None:
        """With the lock held and a slot free: put the image into it and ask for the task."""
        request.slot, number = self._free.pop(), next(self._numbers)
        self._sent[number] = request
        written = 0
        while written < len(request.data):
            written += os.pwrite(self._slots[request.slot], memoryview(request.data)[written:], written)
        try:
            self._connection.send(REQUEST.pack(number, request.slot, len(request.data)) + request.task)
        except (BrokenPipeError, ConnectionResetError):
            return  # the reader sees it too, and sends anew what has no answer

    def _read(self) -> None:
        """The reading thread: answers as they come; a watcher that is gone is replaced."""
        while True:
            try:
                message = self._connection.recv(MAX_MESSAGE)
            except ConnectionResetError:
                message = b""
            self._process_spoke |= bool(message)
            if not message:
                if not self._start_again():
                    return
            elif not self._settle(message):
                self._process.kill()

    def _settle(self, message: bytes) -> bool:
        """End one request: read its answer, give its slot to the next in line, tell who waits. False where the answer is none."""
        try:
            facts = json.loads(message.decode())
            number = facts["number"]
            request = self._sent[number]
            payload = os.pread(self._slots[request.slot], facts.get("bytes", 0), 0)
            again = facts.get("end") == "killed" and request.tries < _MOST_TRIES
            result = None if again else _ended(facts) or failure_in(facts) or request.make(facts, payload)
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return False  # a decoder that lost its mind before its life
        with self._lock:
            del self._sent[number]
            if max(len(request.data), len(payload)) > _KEPT_BYTES:
                os.ftruncate(self._slots[request.slot], 0)
            self._free.append(request.slot)
            if again:
                request.tries += 1
                self._waiting.append(request)
            if self._waiting:
                self._send(self._waiting.popleft())
        if not again:
            request.future.set_result(result)
        return True

    def _start_again(self) -> bool:
        """After the watcher's end: a new one, and once more all that has no answer. False where nothing is to go on."""
        status = self._process.wait()
        said = os.pread(self._noise, 4096, max(0, os.fstat(self._noise).st_size - 4096)).decode("utf-8", "replace").strip()
        os.close(self._noise)
        with self._lock:
            self._connection.close()
            if self._closed:
                return self._give_up(Fatal("the decoders were closed"))
            if status > 0 and not self._process_spoke:
                return self._give_up(Fatal(f"the decoder process cannot start: {said.splitlines()[-1] if said else f'exit code {status}'}"))
            unanswered = list(self._sent.values())
            self._sent.clear()
            hopeless = [request for request in unanswered if request.tries >= _MOST_TRIES]
            for request in unanswered:
                request.tries += 1
            self._waiting.extendleft(request for request in reversed(unanswered) if request not in hopeless)
            try:
                self._launch()
            except OSError as error:
                return self._give_up(Fatal(f"the decoder process cannot be started again: {error}"))
            while self._waiting and self._free:
                self._send(self._waiting.popleft())
        for request in hopeless:
            request.future.set_result(Failure(FailureCode.DECODER_CRASHED, f"{_MOST_TRIES} decoder processes ended without an answer"))
        return True

    def _give_up(self, why: Fatal) -> bool:
        """With the lock held: all requests fail with `why`, those to come too."""
        self._broken = why
        for request in [*self._sent.values(), *self._waiting]:
            request.future.set_exception(why)
        self._sent.clear()
        self._waiting.clear()
        self._close_slots()
        return False

    def _close_slots(self) -> None:
        for slot in self._slots:
            os.close(slot)
        self._slots = []


def _ended(facts: Facts) -> Failure | None:
    """The failure of an image whose decoder did not live to answer."""
    if "end" not in facts:
        return None
    return Failure(_CODES.get(facts["end"], FailureCode.DECODER_CRASHED), cap_detail(facts["detail"]))


def _environment() -> dict[str, str]:
    """What a decoder needs of the environment; credentials are not among it. Its libraries start no threads."""
    kept = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(("LC_", "PYTHON"))}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
