"""Order of a download: no host has more than its share under way, and a slow one holds up nobody else."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from schemas.outcome import Failure, FailureCode
from stages.images.host_slots import HostSlots

_SUCCESSES_PER_STEP = 8


class Job(Protocol):
    """What the queue hands out: one request to a host."""

    host: str


J = TypeVar("J", bound=Job)


@dataclass(slots=True)
class _Host(Generic[J]):
    limit: int
    waiting: deque[J] = field(default_factory=deque)
    running: int = 0
    queued: bool = False
    asleep: asyncio.TimerHandle | None = None
    successes: int = 0
    lost: int = 0  # rows in a row that the host did not answer
    refusal: Failure | None = None


class HostQueue(Generic[J]):
    """Hands out jobs, hosts in turn, each only with a slot of its host.

    A worker takes a job only when its host may be asked, so jobs of a slow or paused host never occupy the workers that
    could serve others. For one event loop; each job handed out is given back by `done` or by `again`. A host that asks
    for a pause of more than `max_wait_s` is not waited for.
    """

    def __init__(self, slots: HostSlots, max_wait_s: float):
        self.slots = slots
        self.max_wait_s = max_wait_s
        self.hosts: dict[str, _Host[J]] = {}
        self.ready: deque[str] = deque()
        self.open = 0
        self.sleepers: deque[asyncio.Future[None]] = deque()

    def add(self, job: J) -> None:
        """A further job; `take` ends when all that were added are done."""
        self.open += 1
        self._push(job)

    async def take(self) -> tuple[J, Failure | None] | None:
        """The next job, with the failure it gets where its host is not asked any more; None when every job is done."""
        while self.open:
            while self.ready:
                found = self._pop()
                if found is not None:
                    return found
            sleeper = asyncio.get_running_loop().create_future()
            self.sleepers.append(sleeper)
            await sleeper
        return None

    def done(self, job: J, refused: bool = False) -> None:
        """A job has its result; `refused`: it was handed out with its failure."""
        self.open -= 1
        if not refused:
            self._release(job.host)
        if not self.open:
            while self.sleepers:
                self._wake()

    def again(self, job: J, host: str, delay_s: float) -> None:
        """Hand a job out again, under `host` (a redirect may lead to another), after a while; its worker serves others meanwhile."""
        self._release(job.host)
        job.host = host
        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, self._push, job)
        else:
            self._push(job)

    def refuse(self, host: str, failure: Failure) -> None:
        """The host's other jobs are handed out with this failure, without a slot, and need not be tried."""
        self.hosts[host].refusal = failure
        self._wake_host(host)

    def slow_down(self, host: str, pause_s: float) -> None:
        """The host asks for fewer requests: none for so long from any process of the run, and half as many at a time from this one."""
        found = self.hosts[host]
        found.limit, found.successes = max(1, found.limit // 2), 0
        self.slots.pause(host, pause_s)

    def answered(self, host: str) -> None:
        """The host gave a good answer: after several, one more request at a time."""
        found = self.hosts[host]
        found.lost = 0
        if found.limit < self.slots.per_host:
            found.successes += 1
            if found.successes >= _SUCCESSES_PER_STEP:
                found.limit, found.successes = found.limit + 1, 0

    def lost(self, host: str) -> int:
        """The host gave a row no answer at all; how many rows in a row now."""
        self.hosts[host].lost += 1
        return self.hosts[host].lost

    def _pop(self) -> tuple[J, Failure | None] | None:
        """The first job of the next host in line; None where that host must wait."""
        name = self.ready.popleft()
        host = self.hosts[name]
        host.queued = False
        if host.refusal is None:
            wait = self.slots.enter(name)
            if wait > self.max_wait_s:
                host.refusal = Failure(FailureCode.RATE_LIMITED, f"{name} asks to wait {wait:.0f} s, longer than max_wait_s ({self.max_wait_s:g})")
            elif wait > 0:
                host.asleep = asyncio.get_running_loop().call_later(wait, self._wake_host, name)
                return None
        if host.refusal is None:
            host.running += 1
        job = host.waiting.popleft()
        self._offer(name)
        return job, host.refusal

    def _push(self, job: J) -> None:
        self.hosts.setdefault(job.host, _Host(self.slots.per_host)).waiting.append(job)
        self._offer(job.host)

    def _release(self, name: str) -> None:
        self.hosts[name].running -= 1
        self.slots.leave(name)
        self._wake_host(name)

    def _wake_host(self, name: str) -> None:
        host = self.hosts[name]
        if host.asleep is not None:
            host.asleep.cancel()
            host.asleep = None
        self._offer(name)

    def _offer(self, name: str) -> None:
        """Put a host in the line of those that may be served, unless it stands there, waits or is at its limit."""
        host = self.hosts[name]
        if host.waiting and not host.queued and host.asleep is None and (host.running < host.limit or host.refusal is not None):
            host.queued = True
            self.ready.append(name)
            self._wake()

    def _wake(self) -> None:
        while self.sleepers:
            sleeper = self.sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                return
