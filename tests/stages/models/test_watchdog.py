"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

_PARENT = """
import os, subprocess, sys, time
from stages.models.watchdog import end_with_this_process
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
end_with_this_process([child.pid])
print(child.pid, flush=True)
time.sleep(300 if sys.argv[1] == "killed" else 0.5)
"""


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_process_goes_with_the_one_it_belongs_to(how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(1.0 if how == "killed" else 0.0)
        assert lives(child), "it lives as long as the one it belongs to"
        if how == "killed":
            parent.send_signal(signal.SIGKILL)
        parent.wait()
    until = time.monotonic() + 20
    while lives(child) and time.monotonic() < until:
        time.sleep(0.05)
    gone = not lives(child)
    if not gone:
        os.kill(child, signal.SIGKILL)
    assert gone
