"""One run at a time in a run directory: a lock with owner and heartbeat, re-checked before every commit."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import Fatal
from pipeline.files import writing
from pipeline.storage import ObjectPath, Place

HEARTBEAT_S = 5.0
DEAD_AFTER_S = 30.0


@dataclass
class Owner:
    """Content of the lock file."""

    token: str
    host: str
    pid: int
    started: float
    heartbeat: float

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """A fresh heartbeat, and on this host a living process behind it."""
        if self.here and not _process_lives(self.pid, self.started):
            return False
        return time.time() - self.heartbeat < DEAD_AFTER_S


def _process_lives(pid: int, started: float) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if os.path.isdir("/proc/self"):
            return False
        try:
            os.kill(pid, 0)  # no /proc (macOS)
        except OSError:
            return False
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"


class LockLost(Fatal):
    """Another run took this directory over; nothing more may be committed from here."""


class Lease(Protocol):
    """How a lock is kept: as a file, or as an object."""

    def turn(self) -> AbstractContextManager[None]:
        """Keeps others from looking at and changing the lock meanwhile, where changes are not conditional of themselves."""
        ...

    def create(self, content: bytes) -> bool:
        """Make the lock where there is none; False where there is one."""
        ...

    def owner(self) -> Owner | None:
        """Who holds it; None where nobody does, or where it is just being written."""
        ...

    def lives(self, owner: Owner) -> bool:
        """Whether the run that holds the lock is still at work."""
        ...

    def take_over(self, seen: Owner | None, content: bytes) -> None:
        """Replace the lock of a dead owner, unless it is no longer `seen`'s. `owner` tells afterwards who has won."""
        ...

    def renew(self, content: bytes) -> None:
        """Write the heartbeat of a lock that is ours."""
        ...

    def remove(self) -> None: ...


class RunLock:
    """Held by the driver; workers carry `token` and call `check` before each commit.

    `warning` is not empty where the storage cannot keep two runs apart for certain.
    """

    def __init__(self, root: Place):
        self.root = root
        self.token = secrets.token_hex(8)
        self.lease = _lease(root / "lock", self.token)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.time()

    @property
    def warning(self) -> str:
        return getattr(self.lease, "warning", "")

    def acquire(self) -> None:
        """Take the lock. Raises Fatal naming the owner where a living run holds it; a dead one is taken over."""
        with self.lease.turn():
            self._try_to_take()
            while not self._held():
                self._try_to_take()
        self._thread = threading.Thread(target=self._beat, name="pairmill-heartbeat", daemon=True)
        self._thread.start()

    def _try_to_take(self) -> None:
        if self.lease.create(self._content()):
            return
        owner = self.lease.owner()
        if owner is not None and owner.token == self.token:
            return
        if owner is not None and self.lease.lives(owner):
            raise Fatal(self._refusal(owner))
        self.lease.take_over(owner, self._content())

    def _refusal(self, owner: Owner) -> str:
        now = time.time()
        return (
            f"{self.root}: another run works here (process {owner.pid} on {owner.host}, started {now - owner.started:.0f} s ago, "
            f"heartbeat {now - owner.heartbeat:.0f} s ago); wait for it or stop it. A run without a heartbeat for {DEAD_AFTER_S:.0f} s is taken over"
        )

    def _held(self) -> bool:
        owner = self.lease.owner()
        return owner is not None and owner.token == self.token

    def _content(self) -> bytes:
        owner = Owner(self.token, socket.gethostname(), os.getpid(), self._started, time.time())
        return json.dumps(asdict(owner)).encode()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                with self.lease.turn():
                    if not self._held():
                        return
                    self.lease.renew(self._content())
            except (OSError, Fatal):  # a full disk, a network that is away: commits fail of themselves, and the next beat may come through
                continue

    def release(self) -> None:
        """Give the lock back; nothing where it was never taken."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        with self.lease.turn():
            if self._held():
                self.lease.remove()


class FileLease:
    """A lock file, always whole: linked into place where there is none, replaced by rename.

    A take-over and a heartbeat look first and rename then; the kernel lock on `lock.turn` makes the two one step.
    """

    def __init__(self, path: Path, token: str):
        self.path = path
        self.mine = path.with_name(f"lock.{token}")

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path):
            descriptor = os.open(self.path.with_name("lock.turn"), os.O_CREAT | os.O_RDWR, 0o666)
        try:
            with suppress(OSError):  # a file system without kernel locks: `take_over` waits to see who was last
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def create(self, content: bytes) -> bool:
        self._write(content)
        try:
            os.link(self.mine, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return self._create_in_place(content)
        finally:
            self.mine.unlink()
        return True

    def _create_in_place(self, content: bytes) -> bool:
        with writing(self.path):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return False
            try:
                os.write(descriptor, content)
            except OSError:
                self.path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        return True

    def owner(self) -> Owner | None:
        return read_owner(self.path)

    def lives(self, owner: Owner) -> bool:
        return owner.alive

    def take_over(self, seen: Owner | None, content: bytes) -> None:
        """Of several that try, the last rename wins and the others see it."""
        self._write(content)
        current = self.owner()
        if current is not None and seen is not None and current.token != seen.token:
            self.mine.unlink()
            return
        os.rename(self.mine, self.path)
        time.sleep(0.05)

    def renew(self, content: bytes) -> None:
        self._write(content)
        os.rename(self.mine, self.path)

    def _write(self, content: bytes) -> None:
        try:
            with writing(self.path):
                self.mine.write_bytes(content)
        except BaseException:
            self.mine.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        self.path.unlink()


def _lease(path: Place, token: str) -> Lease:
    if isinstance(path, ObjectPath):
        from pipeline.object_lock import ObjectLease

        return ObjectLease(path)
    return FileLease(path, token)


def read_owner(path: Place) -> Owner | None:
    """The owner named in a lock file; None where there is none or it is torn (a take-over is under way)."""
    try:
        return parse_owner(path.read_bytes())
    except FileNotFoundError:
        return None


def parse_owner(data: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        return None


def holds(path: Place, token: str) -> bool:
    owner = read_owner(path)
    return owner is not None and owner.token == token


def check(path: Place, token: str) -> None:
    """Raises LockLost unless the lock still bears `token`. Called before every commit."""
    if not holds(path, token):
        raise LockLost(f"{path.parent}: this run's lock is gone or another run took over; nothing more is committed from here")
