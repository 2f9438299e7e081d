"""The run lock as an object: conditional puts decide who has it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from pipeline import lock
from pipeline.lock import Owner, parse_owner
from pipeline.object_store import ConditionFailed, NoConditions, delete, get_with_version, put, put_if
from pipeline.storage import ObjectPath

SETTLE_S = 2.0  # without conditional puts: time for another that wrote at the same moment to be seen

NO_CONDITIONS = (
    "this object store has no conditional puts (If-None-Match, If-Match): a run that works is still found and refused, and lost locks are found before "
    "each commit, but of two runs started within {seconds:g} s of each other both may begin before one of them stops; start one at a time"
)


class ObjectLease:
    """Made by a put with If-None-Match, taken over and renewed by puts with If-Match.

    Where a server ignores these conditions (found by a second put that must fail) or refuses them, the last writer wins and `warning` says so.
    """

    def __init__(self, path: ObjectPath):
        self.path = path
        self.warning = ""
        self._version: str | None = None  # ETag of the lock as last seen or written by us
        self._conditions: bool | None = None

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def create(self, content: bytes) -> bool:
        self.owner()  # asked first: a server that ignores conditions would overwrite a living owner's lock
        return self._version is None and self._put(content, None)

    def _put(self, content: bytes, seen: str | None) -> bool:
        """Put where the lock still has the version `seen`; the first time, find out whether this server minds conditions at all."""
        if self._conditions is not False:
            try:
                self._version = put_if(self.path.bucket, self.path.key, content, seen)
                if self._conditions is None:
                    self._conditions = self._refuses(content)
            except ConditionFailed:
                return False
            except NoConditions:
                self._conditions = False
        if not self._conditions:
            self.warning = f"{self.path.parent}: {NO_CONDITIONS.format(seconds=SETTLE_S)}"
            put(self.path.bucket, self.path.key, content)
            time.sleep(SETTLE_S)
        return True

    def _refuses(self, content: bytes) -> bool:
        """Whether making the lock a second time (with the same content) fails, as it must."""
        try:
            put_if(self.path.bucket, self.path.key, content, None)
        except ConditionFailed:
            return True
        return False

    def owner(self) -> Owner | None:
        try:
            data, self._version = get_with_version(self.path.bucket, self.path.key)
        except FileNotFoundError:
            self._version = None
            return None
        return parse_owner(data)

    def lives(self, owner: Owner) -> bool:
        """An owner on a host whose clock is behind ours only looks dead: watched for two heartbeats, its lock moves."""
        return owner.alive or (not owner.here and self._moves(owner))

    def take_over(self, seen: Owner | None, content: bytes) -> None:
        self._put(content, self._version)

    def _moves(self, seen: Owner) -> bool:
        time.sleep(2 * lock.HEARTBEAT_S + 1)
        now = self.owner()
        return now is None or now.token != seen.token or now.heartbeat != seen.heartbeat

    def renew(self, content: bytes) -> None:
        """`owner` has just told that the lock is ours, and left its version here."""
        if self._conditions is False:
            put(self.path.bucket, self.path.key, content)
            return
        try:
            self._version = put_if(self.path.bucket, self.path.key, content, self._version)
        except ConditionFailed:
            return  # somebody took over between the two requests: the next check tells

    def remove(self) -> None:
        delete(self.path.bucket, [self.path.key])
