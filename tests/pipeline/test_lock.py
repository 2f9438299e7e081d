"""One run at a time in a directory, on a disk and in object storage: real processes, real servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline import lock, object_lock
from pipeline.errors import Fatal
from pipeline.files import commit_bytes
from pipeline.lock import LockLost, Owner, RunLock, read_owner
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from pipeline.storage import Place, place_of
from pipeline.store import Store
from tests.pipeline.drivers import driver, until
from tests.pipeline.s3_server import S3Server

TOYS = Path(__file__).with_name("toys.py")
LOCAL = RunOptions(executor="local")


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty run directory of each kind."""
    if request.param == "disk":
        return tmp_path / "run"
    server: S3Server = request.getfixturevalue("s3")
    return place_of(server.place("run"))


def slow(seconds: float) -> dict[str, Any]:
    return {"name": "slow", "input": {"kind": "numbers", "rows": 100, "rows_per_part": 20}, "stages": [{"slow": {"seconds": seconds}}]}


def test_a_second_run_is_refused_with_the_owner_and_takes_over_a_killed_one(root: Place, tmp_path: Path) -> None:
    fresh = run(build_recipe(slow(0)), tmp_path / "fresh", LOCAL)
    with driver(TOYS, slow(0.2), root) as first:
        until(lambda: (root / "values" / "slow" / "part-00000.parquet").exists(), first)
        told = rf"another run works here \(process {first.pid} on {re.escape(socket.gethostname())}, started \d+ s ago, heartbeat \d+ s ago\)"
        with pytest.raises(Fatal, match=told):
            run(build_recipe(slow(0)), root, LOCAL)
        assert first.poll() is None, "the first run is not disturbed"
        first.send_signal(signal.SIGKILL)
        first.wait()
    second = run(build_recipe(slow(0)), root, LOCAL)
    assert second.view.state_digest() == fresh.view.state_digest()
    assert second.tally.computed["slow"] <= 80, "what the killed run committed is not computed again"
    assert read_owner(root / "lock") is None, "released at the end"


def leave_lock(root: Place, host: str, heartbeat: float) -> None:
    root.mkdir(parents=True, exist_ok=True)
    owner = Owner("0123456789abcdef", host, 1, heartbeat - 100, heartbeat)
    (root / "lock").write_bytes(json.dumps(asdict(owner)).encode())


def test_a_lease_of_another_host_holds_until_its_heartbeat_is_old(root: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    leave_lock(root, "elsewhere", time.time() - 10)
    with pytest.raises(Fatal, match=r"process 1 on elsewhere, started 110 s ago, heartbeat 10 s ago"):
        RunLock(root).acquire()
    leave_lock(root, "elsewhere", time.time() - lock.DEAD_AFTER_S - 1)
    mine = RunLock(root)
    mine.acquire()
    owner = read_owner(root / "lock")
    assert owner is not None and (owner.token, owner.pid) == (mine.token, os.getpid())
    time.sleep(0.5)
    renewed = read_owner(root / "lock")
    assert renewed is not None and renewed.heartbeat > owner.heartbeat
    mine.release()
    assert read_owner(root / "lock") is None


def test_nothing_is_committed_once_the_lock_is_lost(root: Place) -> None:
    mine = RunLock(root)
    mine.acquire()
    store = Store(root, mine.token)
    commit_bytes(root / "values" / "a", b"before", store.guard)
    leave_lock(root, "elsewhere", time.time())
    for size in (10, 40 << 20):  # one put, and an upload in parts
        with pytest.raises(LockLost):
            commit_bytes(root / "values" / "a", b"x" * size, store.guard)
    assert (root / "values" / "a").read_bytes() == b"before"
    mine.release()
    owner = read_owner(root / "lock")
    assert owner is not None and owner.host == "elsewhere", "a lock that is another's is left alone"


def test_an_upload_that_lost_its_lock_is_aborted(s3: S3Server) -> None:
    def lost() -> None:
        raise LockLost("taken over")

    with pytest.raises(LockLost):
        commit_bytes(place_of(s3.place("run/big")), b"x" * (40 << 20), lost)
    assert s3.files("run") == {}
    assert not s3.client.list_multipart_uploads(Bucket="bucket").get("Uploads")
    assert not [r for r in s3.requests if r.method == "POST" and "uploadId" in r.query], "no completion was asked for"


@pytest.mark.parametrize("left_behind", [False, True], ids=["no lock", "a dead lock"])
def test_of_many_that_start_at_once_one_gets_the_lock(root: Place, left_behind: bool) -> None:
    from concurrent.futures import ThreadPoolExecutor

    if left_behind:
        leave_lock(root, socket.gethostname(), time.time() - 10 * lock.DEAD_AFTER_S)
    locks = [RunLock(root) for _ in range(8)]

    def attempt(one: RunLock) -> bool:
        try:
            one.acquire()
        except Fatal:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, locks))
    assert sum(won) == 1
    locks[won.index(True)].release()


def test_an_owner_whose_clock_is_behind_only_looks_dead(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    root = place_of(s3.place("run"))
    owner = RunLock(root)
    behind = time.time() - 1000
    monkeypatch.setattr(owner, "_content", lambda: json.dumps(asdict(Owner(owner.token, "elsewhere", 1, behind, time.time() - 1000))).encode())
    owner.acquire()
    other = RunLock(root)
    with pytest.raises(Fatal, match="elsewhere"):
        other.acquire()
    owner.release()


def test_a_server_without_conditional_puts_is_told_of_and_still_refuses(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "SETTLE_S", 0.1)
    s3.conditions = False
    told: list[str] = []
    root = s3.place("run")
    result = run(build_recipe(slow(0)), root, LOCAL, lambda kind, what: told.append(what) if kind == "warning" else None)
    assert result.tally.computed["slow"] == 99, "all but the bad row of the input"
    assert len(told) == 1 and "no conditional puts" in told[0] and "start one at a time" in told[0]
    with driver(TOYS, slow(0.3), s3.place("other")) as first:
        until(lambda: "values/slow/part-00000.parquet" in s3.files("other"), first)
        with pytest.raises(Fatal, match="another run works here"):
            run(build_recipe(slow(0)), s3.place("other"), LOCAL)
        assert first.poll() is None
