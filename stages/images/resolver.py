"""Names to addresses: the system's resolver in threads of its own, answers remembered, and no lookup waited for without end."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult

MAX_THREADS = 256  # getaddrinfo blocks, for tens of seconds where a name server is silent
FOUND_S = 300.0
NOT_FOUND_S = 2.0  # long enough for the rows that ask at the same time, short enough for a second try
MAX_REMEMBERED = 65536
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

Address = tuple[int, str]  # family, and the address as text (with scope where it has one)


@dataclass(frozen=True, slots=True)
class _Answer:
    expires: float
    addresses: tuple[Address, ...] = ()
    error: socket.gaierror | None = None


class LookupThreads:
    """Daemon threads that look names up: one that hangs holds up neither other lookups nor the end of the process."""

    def __init__(self, limit: int = MAX_THREADS):
        self.limit = limit
        self.answers: dict[str, _Answer] = {}
        self._asked: queue.SimpleQueue[tuple[str, Callable[[_Answer], None]]] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._threads = 0
        self._idle = 0

    def ask(self, host: str, tell: Callable[[_Answer], None]) -> None:
        """Look `host` up and call `tell` from a thread."""
        with self._guard:
            more = self._idle <= 0 and self._threads < self.limit
            self._threads += more
            self._idle -= not more
        self._asked.put((host, tell))
        if more:
            threading.Thread(target=self._work, name="lookup", daemon=True).start()

    def _work(self) -> None:
        while True:
            host, tell = self._asked.get()
            answer = _look_up(host)
            if len(self.answers) >= MAX_REMEMBERED:
                self.answers.clear()
            self.answers[host] = answer
            tell(answer)
            with self._guard:
                self._idle += 1


def _look_up(host: str) -> _Answer:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        return _Answer(time.monotonic() + NOT_FOUND_S, error=error)
    except (UnicodeError, OSError) as error:  # labels of no or more than 63 characters
        return _Answer(time.monotonic() + NOT_FOUND_S, error=socket.gaierror(socket.EAI_NONAME, f"{host}: {error}"))
    addresses = dict.fromkeys((int(family), _with_scope(place)) for family, *_, place in found if len(place) != 2 or family == socket.AF_INET)
    return _Answer(time.monotonic() + FOUND_S, tuple(addresses))


def _with_scope(place: tuple) -> str:
    address = str(place[0])
    return f"{address}%{place[3]}" if len(place) == 4 and place[3] and "%" not in address else address


_threads = LookupThreads()


class Resolver(AbstractResolver):
    """aiohttp's resolver interface over the lookup threads of the process, whose answers later parts use too.

    Raises socket.gaierror where a name has no address or `patience_s` passed without an answer.
    """

    def __init__(self, patience_s: float, threads: LookupThreads | None = None):
        self.patience_s = patience_s
        self.threads = threads or _threads
        self._pending: dict[str, asyncio.Future[_Answer]] = {}

    async def addresses(self, host: str) -> tuple[Address, ...]:
        """Family and address of each address of a host, in the resolver's order."""
        answer = self.threads.answers.get(host)
        if answer is None or answer.expires < time.monotonic():
            answer = await self._ask(host)
        if answer.error is not None:
            raise answer.error.with_traceback(None)
        return answer.addresses

    async def _ask(self, host: str) -> _Answer:
        pending = self._pending.get(host)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = self._pending[host] = loop.create_future()
            self.threads.ask(host, lambda answer: _tell(loop, self._take, host, answer))
        done, _ = await asyncio.wait([pending], timeout=self.patience_s)
        if not done:
            raise socket.gaierror(socket.EAI_AGAIN, f"the resolver gave no answer within {self.patience_s:g} s")
        return pending.result()

    def _take(self, host: str, answer: _Answer) -> None:
        pending = self._pending.pop(host)
        if not pending.done():
            pending.set_result(answer)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=_NUMERIC)
            for kind, address in await self.addresses(host)
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        self._pending.clear()


def _tell(loop: asyncio.AbstractEventLoop, take: Callable[[str, _Answer], None], host: str, answer: _Answer) -> None:
    try:
        loop.call_soon_threadsafe(take, host, answer)
    except RuntimeError:  # the part ended before the answer came
        return
