"""Order of a download: no host has more than its share under way, and a slow one holds up nobody else."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Host:
    waiting: deque[int] = field(default_factory=deque)
    running: int = 0
    queued: bool = False


class HostQueue:
    """Hands out row numbers, hosts in turn, at most `per_host` of one host at a time.

    A worker takes a row only when its host has a free place, so rows of a slow host never occupy the workers that
    could serve others. For one event loop; each row is given back by `done`, or by `again` to be tried later.
    """

    def __init__(self, rows: list[tuple[int, str]], per_host: int):
        self.per_host = per_host
        self.hosts: dict[str, _Host] = {}
        self.ready: deque[str] = deque()
        self.open = len(rows)
        self.sleepers: deque[asyncio.Future[None]] = deque()
        for row, host in rows:
            self._push(row, host)

    async def take(self) -> tuple[int, str] | None:
        """The next row and its host; None when every row is done."""
        while self.open:
            if self.ready:
                return self._pop()
            sleeper = asyncio.get_running_loop().create_future()
            self.sleepers.append(sleeper)
            await sleeper
        return None

    def done(self, host: str) -> None:
        """A row of this host has its result."""
        self.open -= 1
        self._release(host)
        if not self.open:
            while self.sleepers:
                self._wake()

    def again(self, row: int, host: str, delay_s: float) -> None:
        """Try a row again after a while; its worker serves others meanwhile."""
        self._release(host)
        asyncio.get_running_loop().call_later(delay_s, self._push, row, host)

    def _pop(self) -> tuple[int, str]:
        name = self.ready.popleft()
        host = self.hosts[name]
        host.queued = False
        host.running += 1
        row = host.waiting.popleft()
        self._offer(name)
        return row, name

    def _push(self, row: int, name: str) -> None:
        self.hosts.setdefault(name, _Host()).waiting.append(row)
        self._offer(name)

    def _release(self, name: str) -> None:
        self.hosts[name].running -= 1
        self._offer(name)

    def _offer(self, name: str) -> None:
        """Put a host in the line of those that may be served, unless it stands there or is at its limit."""
        host = self.hosts[name]
        if host.waiting and not host.queued and host.running < self.per_host:
            host.queued = True
            self.ready.append(name)
            self._wake()

    def _wake(self) -> None:
        while self.sleepers:
            sleeper = self.sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                return
