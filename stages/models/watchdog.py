"""Processes that must not outlive this one, also where it is killed: an engine left behind would keep its memory, of a GPU too."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable

import psutil

_WATCH = """
import os, signal, sys
sys.stdin.buffer.read()
for word in sys.argv[1:]:
    pid, born = word.split(":")
    try:
        with open(f"/proc/{pid}/stat") as file:
            now = file.read().rpartition(")")[2].split()[19]
        if now == born:
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


_watching: list[subprocess.Popen[bytes]] = []


def end_with_this_process(pids: Iterable[int]) -> None:
    """A small process waits until this one is gone, however it ended, and then kills those of `pids` that are left. On Linux; elsewhere
    nothing is done."""
    if not sys.platform.startswith("linux"):
        return
    words = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                words.append(f"{pid}:{file.read().rpartition(')')[2].split()[19]}")  # with its time of birth: a number may be given away again
        except FileNotFoundError:
            continue
    # The pipe's end here closes with this process, and is kept until then. No other child inherits it: descriptors are not inheritable.
    _watching.append(subprocess.Popen([sys.executable, "-S", "-c", _WATCH, *words], stdin=subprocess.PIPE, start_new_session=True))


def engine_processes() -> list[int]:
    """vLLM's processes below this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("VLLM"):
                found.append(child.pid)
    return found
