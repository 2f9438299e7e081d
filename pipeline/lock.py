"""One run at a time in a run directory: a lock file with owner and heartbeat, re-checked before every commit."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import Fatal

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
    def alive(self) -> bool:
        """A fresh heartbeat, and on this host a living process behind it."""
        if self.host == socket.gethostname() and not _process_lives(self.pid, self.started):
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


class RunLock:
    """Held by the driver; workers carry `token` and call `check` before each commit."""

    def __init__(self, root: Path):
        self.path = root / "lock"
        self.token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.time()

    def acquire(self) -> None:
        """Take the lock. Raises Fatal naming the owner where a living run holds it; a dead one is taken over."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                owner = read_owner(self.path)
                if owner is not None and owner.alive:
                    age = time.time() - owner.started
                    raise Fatal(
                        f"{self.path.parent}: another run works here (process {owner.pid} on {owner.host}, started {age:.0f} s ago, "
                        f"heartbeat {time.time() - owner.heartbeat:.0f} s ago); wait for it or stop it"
                    ) from None
                self._take_over(owner)
            else:
                os.write(descriptor, self._content())
                os.close(descriptor)
            if holds(self.path, self.token):
                break
        self._thread = threading.Thread(target=self._beat, name="pairmill-heartbeat", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        owner = Owner(self.token, socket.gethostname(), os.getpid(), self._started, time.time())
        return json.dumps(asdict(owner)).encode()

    def _take_over(self, seen: Owner | None) -> None:
        """Put our content in place of a dead owner's; of several that try, the last rename wins and the others see it."""
        mine = self.path.with_name(f"lock.{self.token}")
        mine.write_bytes(self._content())
        current = read_owner(self.path)
        if current is not None and seen is not None and current.token != seen.token:
            mine.unlink()
            return
        os.rename(mine, self.path)
        time.sleep(0.05)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if not holds(self.path, self.token):
                return
            mine = self.path.with_name(f"lock.{self.token}")
            mine.write_bytes(self._content())
            os.rename(mine, self.path)

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if holds(self.path, self.token):
            self.path.unlink()


def read_owner(path: Path) -> Owner | None:
    """The owner named in a lock file; None where there is none or it is torn (a take-over is under way)."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def holds(path: Path, token: str) -> bool:
    owner = read_owner(path)
    return owner is not None and owner.token == token


def check(path: Path, token: str) -> None:
    """Raises LockLost unless the lock still bears `token`. Called before every commit."""
    if not holds(path, token):
        raise LockLost(f"{path.parent}: this run's lock is gone or another run took over; nothing more is committed from here")
