"""Limits per host over real processes that fetch from one server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.images import host_slots
from stages.images.host_slots import HostSlots, slots_of_run

BODY = b"some bytes of an image"
PROGRAM = Path(__file__).with_name("fetching_process.py")
ROOT = Path(__file__).parents[3]


class Workers:
    """Processes of one run; all begin at the same time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, **asked: Any) -> subprocess.Popen[str]:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "TMPDIR": str(self.folder), "PYTHONPATH": paths}
        command = [sys.executable, str(PROGRAM), json.dumps({"run": "test", **asked})]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.processes.append(process)
        return process

    def begin(self) -> None:
        for process in self.processes:
            assert process.stdout and process.stdin and process.stdout.readline() == "ready\n"
        for process in self.processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()

    def outcomes(self) -> list[list[str]]:
        return [json.loads(process.communicate(timeout=60)[0]) for process in self.processes]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            pipe.close()


def slow(web: Any, seconds: float, began: list[float] | None = None) -> Callable[..., Any]:
    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        if began is not None:
            began.append(time.monotonic())
        await asyncio.sleep(seconds)
        writer.write(web.http(BODY))
        await writer.drain()

    return answer


def test_two_processes_stay_within_one_limit_and_share_it(web: Any, workers: Workers) -> None:
    web.answers |= {"/a": slow(web, 0.02), "/b": slow(web, 0.02)}
    for path in ("/a", "/b"):
        workers.start(urls=[web.url(path)] * 60, per_host=4)
    workers.begin()
    assert workers.outcomes() == [["ok"] * 60] * 2
    assert web.most_running["all"] == 4, "the limit holds for both together, and is used"


def test_a_single_slot_goes_from_process_to_process(web: Any, workers: Workers) -> None:
    order: list[str] = []

    def told(path: str) -> Callable[..., Any]:
        async def answer(writer: asyncio.StreamWriter, _: int) -> None:
            order.append(path)
            await asyncio.sleep(0.02)
            writer.write(web.http(BODY))
            await writer.drain()

        return answer

    web.answers |= {"/a": told("/a"), "/b": told("/b")}
    for path in ("/a", "/b"):
        workers.start(urls=[web.url(path)] * 70, per_host=1)
    workers.begin()
    assert workers.outcomes() == [["ok"] * 70] * 2
    assert web.most_running["all"] == 1
    assert set(order[:70]) == {"/a", "/b"}, "one process held the only slot until it had no more rows"


def test_rate_holds_over_two_processes(web: Any, workers: Workers) -> None:
    began: list[float] = []
    web.answers["/a"] = slow(web, 0, began)
    for _ in range(2):
        workers.start(urls=[web.url("/a")] * 10, per_host=8, rate=20)
    workers.begin()
    assert workers.outcomes() == [["ok"] * 10] * 2
    began.sort()
    for first, eleventh in zip(began, began[10:], strict=False):
        assert eleventh - first > 0.4, "ten further requests at 20 per second take half a second"


def test_a_killed_process_gives_its_slots_back(web: Any, workers: Workers) -> None:
    web.answers |= {"/hold": slow(web, 30), "/a": web.http(BODY)}
    victim = workers.start(urls=[web.url("/hold")] * 2, per_host=2)
    workers.begin()
    deadline = time.monotonic() + 20
    while web.running["all"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    mine = HostSlots(workers.folder / f"{host_slots.PREFIX}{os.getuid()}-test", 2)
    assert mine.enter("127.0.0.1") > 0, "both slots are taken"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert mine.enter("127.0.0.1") == 0 and mine.enter("127.0.0.1") == 0
    mine.leave_all()


def test_a_host_that_says_429_is_paused_for_the_other_process_too(web: Any, workers: Workers) -> None:
    asked: list[tuple[float, int]] = []

    async def answer(writer: asyncio.StreamWriter, times: int) -> None:
        asked.append((time.monotonic(), times))
        writer.write(web.http(b"", "429 Slow", retry_after="1") if times == 1 else web.http(BODY))
        await writer.drain()

    web.answers["/a"] = answer
    for _ in range(2):
        workers.start(urls=[web.url("/a")] * 5, per_host=1, retries=1)
    workers.begin()
    assert workers.outcomes() == [["ok"] * 5] * 2
    assert asked[1][0] - asked[0][0] >= 0.95, "a request came while the host was paused"


def test_slots_of_no_run_leave_nothing_open() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to count descriptors in")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        HostSlots(None, 4)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_limits_are_divided_among_nodes() -> None:
    assert [HostSlots(None, 16, nodes=nodes).per_host for nodes in (1, 3, 100)] == [16, 5, 1]
    assert HostSlots(None, 16, rate=2.0, nodes=4).interval_s == 2.0


def test_slots_of_different_hosts_and_of_no_run_are_apart() -> None:
    one, other = HostSlots(None, 1), HostSlots(None, 1)
    assert one.enter("a") == 0 and one.enter("b") == 0 and other.enter("a") == 0
    assert one.enter("a") > 0
    one.leave("a")
    assert one.enter("a") == 0


def test_files_of_dead_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prefix = f"{host_slots.PREFIX}{os.getuid()}-"
    (tmp_path / f"{prefix}dead").write_bytes(b"")
    first = slots_of_run("mine", 4, None, 1, 1)
    assert slots_of_run("mine", 4, None, 1, 1) is first
    assert [path.name.removeprefix(prefix) for path in tmp_path.iterdir()] == ["mine"]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(50):
        slots_of_run(f"later{number}", 4, None, 1, 1)
    assert [path.name.removeprefix(prefix) for path in tmp_path.iterdir()] == ["later49"]
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("per_host", [0, 5000])
def test_limits_out_of_range_are_refused(per_host: int) -> None:
    with pytest.raises(ValueError, match="per_host"):
        HostSlots(None, per_host)
