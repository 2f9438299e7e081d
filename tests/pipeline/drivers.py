"""Runs of a recipe in processes of their own, to be killed or to stand in each other's way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, sys
from pipeline import registry
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
plugin, recipe, out = sys.argv[1:]
registry.import_file(plugin)
run(build_recipe(json.loads(recipe)), out, RunOptions(executor="local"))
"""


@contextmanager
def driver(plugin: Path, recipe: dict[str, Any], out: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a recipe dictionary in `out`; killed at the end of the block where it still lives."""
    command = [sys.executable, "-c", _PROGRAM, str(plugin), json.dumps(recipe), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Wait for something that `process` is to do. Fails with its messages where it ends before."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended: {process.communicate()[1]}"
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def ten_kills(plugin: Path, recipe: dict[str, Any], out: Path, folder: Path, before: Path, parts: int) -> None:
    """Kills a run ten times while a resolve works, from when the stage before it has judged all parts (files in `before`) to when its own last part (in
    `folder`) is committed: all over that time. Fails where that often did not come in between."""
    kills = 0
    for nth in range(30):
        with driver(plugin, recipe, out) as process:
            until(lambda least=nth: len(list(before.glob("part-*"))) == parts and len(list(folder.glob("part-*"))) >= least // 2, process, 250)
            time.sleep(0.1 * (nth % 2))
            broken_off = process.poll() is None and len(list(folder.glob("part-*"))) < parts
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += broken_off
        for path in folder.glob("part-*"):
            path.unlink()  # else the next run would find it resolved
        if kills == 10:
            return
    raise AssertionError(f"only {kills} kills came while it resolved")
