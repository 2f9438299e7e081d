"""Limits per host that hold for a whole run: slots, a rate and pauses, shared by the processes of one machine.

A slot is a record lock (fcntl) on one byte of a file that only this purpose has. The kernel takes it back when its
process dies, however it dies, and a forked child does not inherit it. Rate and pauses stand in a small table at the
head of the same file, mapped into memory. Nothing here needs a server, and nothing has to be repaired after a kill.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import tempfile
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

ENTRIES = 1 << 16  # hosts that share an entry share their pauses and their rate, never their slots
_FIELDS = 4  # of an entry, each a float64: pause ends, next request, somebody waits since, who (process id)
_PAUSE, _NEXT, _WANTED, _WANTER = range(_FIELDS)
TABLE_BYTES = ENTRIES * _FIELDS * 8
_ALIVE = TABLE_BYTES  # a shared lock on this byte: the file is in use
_RATE_LOCKS = 1 << 24  # one byte per entry, locked while the next request's time is moved on
_SLOTS = 1 << 32
MAX_PER_HOST = 4096
_HOSTS = 1 << 40

_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.16
_WISH_HOLDS_S = 0.5  # a process that waits says so at every poll
_TURN_S, _REST_S = 0.5, 0.25  # where there are fewer slots than processes they take turns

PREFIX = "pairmill-hosts-"


@dataclass(slots=True)
class _Host:
    slots: int  # place of its first slot in the file
    entry: int  # place of its entry in the table
    lock: int  # place of its rate lock
    free: list[int]  # slots that this process does not hold; those it held last stand at the end
    held: list[int] = field(default_factory=list)
    poll_s: float = _FIRST_POLL_S
    turn_began: float = 0.0
    rest_until: float = 0.0


class HostSlots:
    """At most `per_host` requests to a host at a time and `rate` per second begun, over all processes that open `path`.

    `path` None: a file that nobody else has. `nodes`: machines among which the limits are divided (each has its own
    file), at least one slot each. `processes`: how many of this machine may want slots, for a fair share among them.
    For one thread; a process opens a path once, for closing a second opening would lose the locks of the first.
    """

    def __init__(self, path: Path | None, per_host: int, rate: float | None = None, nodes: int = 1, processes: int = 1):
        if not 1 <= per_host <= MAX_PER_HOST:
            raise ValueError(f"per_host must be 1 to {MAX_PER_HOST}, not {per_host}")
        self.per_host = max(1, per_host // nodes)
        self.interval_s = nodes / rate if rate else 0.0
        self.share = max(1, self.per_host // max(1, processes))
        self.turns = self.per_host < processes
        self._me = float(os.getpid())
        self._file = _open(path)
        if path is None:
            weakref.finalize(self, os.close, self._file)
        self._map = mmap.mmap(self._file, TABLE_BYTES)
        self._table = memoryview(self._map).cast("d")
        self._hosts: dict[str, _Host] = {}

    def enter(self, host: str) -> float:
        """Take a slot for one request: 0.0 when it is taken, else the seconds after which to ask again."""
        found = self._host(host)
        table, now = self._table, time.monotonic()
        if table[found.entry + _PAUSE] > now:
            return table[found.entry + _PAUSE] - now
        if self._others_first(found, now):
            return _FIRST_POLL_S
        slot = self._take(found)
        if slot is None:
            table[found.entry + _WANTER], table[found.entry + _WANTED] = self._me, now
            found.poll_s = min(2 * found.poll_s, _LAST_POLL_S)
            return found.poll_s * random.uniform(0.5, 1.0)
        if self.interval_s:
            wait = self._wait_for_turn(found, now)
            if wait:
                self._release(found, slot)
                return wait
        found.poll_s = _FIRST_POLL_S
        found.held.append(slot)
        return 0.0

    def leave(self, host: str) -> None:
        """Give back one slot of a host."""
        found = self._hosts[host]
        self._release(found, found.held.pop())

    def leave_all(self) -> None:
        """Give back what is held and forget the hosts: the end of a part, however it came."""
        for host in self._hosts.values():
            for slot in host.held:
                self._release(host, slot)
        self._hosts.clear()

    def forget(self) -> None:
        """Let go of the file's memory; the object is of no use afterwards."""
        self._hosts.clear()
        self._table.release()
        self._map.close()

    def pause(self, host: str, seconds: float) -> None:
        """No process begins a request to the host for so long. A longer pause that holds already stays."""
        at = self._host(host).entry + _PAUSE
        self._table[at] = max(self._table[at], time.monotonic() + seconds)

    def _host(self, name: str) -> _Host:
        found = self._hosts.get(name)
        if found is None:
            number = xxhash.xxh64_intdigest(name.encode())
            entry = number % ENTRIES
            slots = _SLOTS + (number % _HOSTS) * MAX_PER_HOST
            found = self._hosts[name] = _Host(slots, entry * _FIELDS, _RATE_LOCKS + entry, list(range(self.per_host)))
        return found

    def _others_first(self, host: _Host, now: float) -> bool:
        """True where another process waits for this host and this one has had its share."""
        table = self._table
        if now - table[host.entry + _WANTED] > _WISH_HOLDS_S or table[host.entry + _WANTER] == self._me:
            host.turn_began = now
            return False
        if not self.turns:
            return len(host.held) >= self.share
        if now - host.turn_began > _TURN_S:
            host.turn_began = host.rest_until = now + _REST_S
        return now < host.rest_until

    def _take(self, host: _Host) -> int | None:
        for at in range(len(host.free) - 1, -1, -1):  # a process never conflicts with its own locks, so it must know them
            if self._lock(host.slots + host.free[at]):
                return host.free.pop(at)
        return None

    def _lock(self, place: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(self, host: _Host, slot: int) -> None:
        host.free.append(slot)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, host.slots + slot)

    def _wait_for_turn(self, host: _Host, now: float) -> float:
        """0.0 where the rate allows a request now, which is then counted; else the seconds until it may."""
        if not self._lock(host.lock):
            return random.uniform(0.001, 0.003)
        try:
            at = host.entry + _NEXT
            wait = self._table[at] - now
            if wait > 0:
                return wait
            self._table[at] = now + self.interval_s
            return 0.0
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, host.lock)


_opened: dict[tuple[Path, int, float | None, int, int], HostSlots] = {}
_files: dict[Path, int] = {}


def slots_of_run(run: str, per_host: int, rate: float | None, nodes: int, processes: int) -> HostSlots:
    """The slots of a run on this machine, the same object for equal limits within a process; '' for no run: slots of this caller alone.

    A process works for one run at a time: what it has of another one is closed.
    """
    if not run:
        return HostSlots(None, per_host, rate)
    key = (Path(tempfile.gettempdir(), f"{PREFIX}{os.getuid()}-{run}"), per_host, rate, nodes, processes)
    if key[0] not in _files:
        _close_other_runs()
    if key not in _opened:
        _opened[key] = HostSlots(*key)
    return _opened[key]


def _close_other_runs() -> None:
    for slots in _opened.values():
        slots.forget()
    for descriptor in _files.values():
        os.close(descriptor)
    _opened.clear()
    _files.clear()


def _open(path: Path | None) -> int:
    """Descriptor of the slots' file, made where it is missing and kept for the process; what dead runs left is removed."""
    if path is None:
        with tempfile.TemporaryFile() as file:
            file.truncate(TABLE_BYTES)
            return os.dup(file.fileno())
    if path not in _files:
        _remove_unused(path.parent)
        _files[path] = _open_in_use(path)
    return _files[path]


def _open_in_use(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.lockf(descriptor, fcntl.LOCK_SH, 1, _ALIVE)
        status = os.fstat(descriptor)
        if status.st_nlink:  # else it was removed between the two calls
            if status.st_size < TABLE_BYTES:
                os.truncate(descriptor, TABLE_BYTES)
            return descriptor
        os.close(descriptor)


def _remove_unused(folder: Path) -> None:
    """Remove the files of runs of this user that no process has open any more."""
    for path in folder.glob(f"{PREFIX}{os.getuid()}-*"):
        if path in _files:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _ALIVE)
            path.unlink(missing_ok=True)
        except OSError:
            continue  # in use
        finally:
            os.close(descriptor)
