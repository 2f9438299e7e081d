"""Runs pairmill on the rendered web, kills it (driver, worker or Ray node) at chosen moments, and starts it again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

RECIPE = Path(__file__).with_name("kills.yaml")
ROOT = Path(__file__).resolve().parents[2]
TITLES = {"worker": "ray::_work", "model": "ray::ModelActor"}  # as Ray names its processes while a task runs


@dataclass(frozen=True)
class Moment:
    """Kill `what` ('driver', 'worker', 'node', 'model') once event number `nth` of `phase` was seen, after `delay` seconds.

    phase: a stage (a task that includes it has started), 'resolve', or the name of a job.
    """

    what: str
    phase: str
    nth: int
    delay: float


def twenty_moments(seed: int = 0) -> list[Moment]:
    """20 kills, at least three each in a resolve, in download, clip_score and write_shards, of all three kinds."""
    rng = random.Random(seed)
    plan = [("driver", "resolve"), ("node", "resolve"), ("driver", "resolve")]
    plan += [(what, "download") for what in ("driver", "worker", "node", "driver", "worker", "node")]
    plan += [(what, "clip_score") for what in ("driver", "worker", "node", "driver", "worker", "node")]
    plan += [(what, "write_shards") for what in ("driver", "worker", "node", "driver", "node")]
    many = ("download", "clip_score")  # phases of many tasks: sometimes let one more pass
    return [Moment(what, phase, 1 + (place % 2 if phase in many else 0), rng.choice((0.0, 0.05, 0.3))) for place, (what, phase) in enumerate(plan)]


def command(table: Path, out: Path, executor: str = "ray", extra: list[str] | None = None) -> list[str]:
    base = [sys.executable, "-m", "pipeline.cli", "run", str(RECIPE), "--out", str(out), "--set", f"input.table={table}"]
    return [*base, "--executor", executor, "--workers", "2", "--progress", "json", *(extra or [])]


def start(table: Path, out: Path, executor: str = "ray", extra: list[str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(command(table, out, executor, extra), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run_to_the_end(table: Path, out: Path, executor: str = "ray", extra: list[str] | None = None) -> list[dict]:
    """Events of a run that nobody kills; AssertionError with its last lines when it fails."""
    process = start(table, out, executor, extra)
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert process.wait() == 0, "\n".join(lines[-10:])
    return [json.loads(line) for line in lines if line.startswith("{")]


def kill_at(process: subprocess.Popen[str], moment: Moment) -> str:
    """Read events until the moment, kill, and wait for the driver unless only a worker died. Returns 'killed' or 'ended'."""
    assert process.stderr is not None
    seen: Counter[str] = Counter()
    for line in process.stderr:
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        names = _phases(event)
        seen.update(names)
        if moment.phase in names and seen[moment.phase] >= moment.nth:
            time.sleep(moment.delay)
            family = _kill_when_there(process, moment.what)
            if family is None:
                continue
            if moment.what in ("worker", "model"):
                process.stderr.read()
                process.wait()
                return "killed"
            process.stderr.read() if moment.what == "node" else None
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            time.sleep(0.5)  # orphans may still try to commit; the lock must refuse them
            for orphan in family:
                _quietly_kill(orphan)
            return "killed"
    process.wait()
    return "ended"


def _phases(event: dict) -> list[str]:
    """The phases that an event says have begun."""
    if event["event"] == "start":
        return event["stages"]
    return {"resolve": ["resolve"], "job": [event.get("job", "")]}.get(event["event"], [])


def _kill_when_there(process: subprocess.Popen[str], what: str, patience_s: float = 2.0) -> list[psutil.Process] | None:
    """Kill as soon as there is such a process; returns the family as it was, or None when the run went by without one."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        if _kill(process, what, family):
            return family
        time.sleep(0.01)
    return None


def _kill(process: subprocess.Popen[str], what: str, family: list[psutil.Process]) -> bool:
    if what == "driver":
        process.send_signal(signal.SIGKILL)
        return True
    for child in family:
        try:
            name, line = child.name(), " ".join(child.cmdline()[:1])
        except psutil.Error:
            continue
        if (what == "node" and name == "raylet") or (what in TITLES and line.startswith(TITLES[what])):
            os.kill(child.pid, signal.SIGKILL)
            return True
    return False


def _quietly_kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


def committed(out: Path) -> dict[Path, tuple[int, int]]:
    """Committed part files and blobs: path -> (inode, mtime)."""
    found = {}
    for kind in ("values", "blobs"):
        for path in (out / kind).rglob("part-*"):
            if not path.name.startswith("."):
                stat = path.stat()
                found[path] = (stat.st_ino, stat.st_mtime_ns)
    return found


def tree_digest(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of every file below a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}
