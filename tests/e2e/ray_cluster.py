"""Ray nodes on one machine, each with a temporary folder of its own, jobs submitted to them, and nodes killed with all their processes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
MARK = "PAIRMILL_TEST_NODE"  # in the environment of every process of a node: <folder of the cluster>/<node>
NODE_MEMORY = 256 << 20


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class RayCluster:
    """A head that runs tasks too, and further nodes. Nodes share the network and nothing else: what lies in one's temporary folder no other sees.

    Its processes get this process's environment as it is at the start. `close` ends every process of it and removes its folder.
    """

    def __init__(self, head_cpus: int = 1):
        self.folder = Path(tempfile.mkdtemp(prefix="prc-"))
        self.port, self.dashboard = free_ports(2)
        self.token = secrets.token_hex(32)
        self.nodes = 0
        try:
            self._start("head", head_cpus, ["--head", f"--port={self.port}", "--include-dashboard=true", f"--dashboard-port={self.dashboard}"])
        except BaseException:
            self.close()
            raise

    def environment(self, node: str) -> dict[str, str]:
        scratch = self.folder / node
        scratch.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, **auth, MARK: str(scratch), "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def _start(self, node: str, cpus: int, arguments: list[str]) -> None:
        options = [f"--num-cpus={cpus}", f"--object-store-memory={NODE_MEMORY}", "--node-ip-address=127.0.0.1", f"--temp-dir={self.folder / node}"]
        options += ["--disable-usage-stats", f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, *options]
        done = subprocess.run(command, env=self.environment(node), capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def add_node(self, cpus: int = 1) -> str:
        """Start a further node; returns its name."""
        self.nodes += 1
        name = f"node{self.nodes}"
        self._start(name, cpus, [f"--address=127.0.0.1:{self.port}"])
        return name

    def processes(self, node: str = "") -> list[psutil.Process]:
        """Living processes of one node, or of all."""
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get(MARK, "")
            except psutil.Error:
                continue
            if mark == str(self.folder / node) or (not node and mark.startswith(f"{self.folder}/")):
                found.append(process)
        return found

    def works(self, node: str, title: str) -> bool:
        """Whether a process of the node bears this title, which Ray sets while a task runs."""
        for process in self.processes(node):
            try:
                if "".join(process.cmdline()[:1]).startswith(title):
                    return True
            except psutil.Error:
                continue
        return False

    def computes(self, node: str) -> set[int]:
        """Places in the recipe of the stages whose rows workers of the node have in hand just now, by the word that they leave of them."""
        found = set()
        for note in (self.folder / node).glob("pairmill-*/*.json"):
            try:
                found.add(json.loads(note.read_text())["node"])
            except (OSError, ValueError):  # just written or removed
                continue
        return found

    def kill(self, node: str) -> None:
        """SIGKILL to every process of a node, first of all to its raylet, as when a machine goes."""
        for process in sorted(self.processes(node), key=lambda each: each.name() != "raylet"):
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue

    def submit(self, entrypoint: list[str], options: list[str] | None = None) -> subprocess.Popen[str]:
        """`ray job submit`, which follows the job's output and ends with it."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address=http://127.0.0.1:{self.dashboard}", *(options or [])]
        environment = self.environment("submit")
        return subprocess.Popen([*command, "--", *entrypoint], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def close(self) -> None:
        for _ in range(3):  # what a killed process was just starting
            for process in self.processes():
                try:
                    process.kill()
                except psutil.Error:
                    continue
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


def until(condition: Callable[[], object], seconds: float, pause: float = 0.01) -> bool:
    """Whether a condition came true in time."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(pause)
    return True
