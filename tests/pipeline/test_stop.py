"""Signals at the moments that a run of the real command meets by chance only: while it ends, twice, while the program is loaded, behind ray.init."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Fatal, Interrupted
from pipeline.stop import StopOnSignal, undisturbed
from tests.e2e.ray_cluster import until

REPOSITORY = Path(__file__).parents[2]

TWICE = """
import signal, subprocess, sys
from pipeline.stop import StopOnSignal, undisturbed
with StopOnSignal():
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    with undisturbed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    print("not reached")
"""

MAIN = """
import atexit, os, signal, sys, types
stop = lambda: os.kill(os.getpid(), signal.{number})
sys.modules["pipeline.cli"] = types.SimpleNamespace(main=lambda: {does})
atexit.register(stop if {late} else int)
from pipeline.__main__ import main
main()
"""


@pytest.fixture(autouse=True)
def handlers():
    """Those of the test process come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_a_run_is_carried_to_its_end(number):
    done = []
    with StopOnSignal() as stop:
        try:
            with undisturbed():
                signal.raise_signal(number)
                done.append("inner")
        finally:
            with undisturbed():
                done.append("outer")
        done.append("not reached")
    assert stop.asked and done == ["inner", "outer"]


def test_an_error_on_its_way_is_not_hidden_by_a_signal_that_comes_while_the_run_ends():
    with pytest.raises(Fatal, match="the disk is full"), StopOnSignal() as stop:
        try:
            raise Fatal("the disk is full")
        finally:
            with undisturbed():
                signal.raise_signal(signal.SIGINT)
    assert not stop.asked
    with StopOnSignal() as fresh, undisturbed():
        pass
    assert not fresh.asked, "a signal of before is no signal of now"


def test_a_second_signal_ends_the_process_at_once_and_all_that_it_started():
    ended = python(TWICE)
    assert ended.returncode == 130 and "stopped at once" in ended.stderr and "Traceback" not in ended.stderr
    (child,) = ended.stdout.split()
    assert until(lambda: not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE, 10)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_before_the_command_has_begun_ends_without_a_traceback(number):
    ended = python(MAIN.format(number=number, does="stop()", late=False))
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_signal_at_the_very_end_changes_no_exit_code():
    ended = python(MAIN.format(number="SIGINT", does="sys.exit(3)", late=True))
    assert (ended.returncode, ended.stderr) == (3, "")


def test_rays_own_handler_of_sigterm_gives_way():
    session = pytest.importorskip("pipeline.ray_session")

    def as_ray() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    with StopOnSignal() as meanwhile, session._sigterm_kept():
        as_ray()
        signal.raise_signal(signal.SIGTERM)
    assert meanwhile.asked
    with StopOnSignal() as behind:
        with session._sigterm_kept():
            as_ray()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    assert behind.asked


def test_a_ray_of_which_a_process_is_gone_is_told():
    session = pytest.importorskip("pipeline.ray_session")
    with subprocess.Popen(["sleep", "60"]) as server:
        servers = watched(session, [psutil.Process(server.pid)], "")
        servers.check()
        server.kill()
        with pytest.raises(Fatal, match="Run the same command again"):
            until(lambda: servers.check(), 10)  # a zombie, until it is waited for


def test_a_head_that_does_not_answer_for_long_is_told(monkeypatch):
    session = pytest.importorskip("pipeline.ray_session")
    with socket.create_server(("127.0.0.1", 0)) as head:
        servers = watched(session, [], f"127.0.0.1:{head.getsockname()[1]}")
        servers.check()
    servers.check()  # it may come back
    monkeypatch.setattr(session, "HEAD_PATIENCE_S", 0.2)
    with pytest.raises(Fatal, match="head of the Ray cluster at 127.0.0.1:[0-9]+ has not answered"):
        until(lambda: servers.check(), 10)


def watched(session, own, head):
    """As they stand in a run that has begun."""
    servers = session.Servers.__new__(session.Servers)
    servers.own, servers.head, servers.heard = own, head, time.monotonic()
    return servers
