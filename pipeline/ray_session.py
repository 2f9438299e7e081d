"""Ray's life beside a run: started here or joined at an address, watched, and ended with all its processes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from pipeline.errors import Fatal, RecipeError
from pipeline.preflight import unreachable
from pipeline.ray_models import NAMESPACE
from pipeline.stop import undisturbed

AGENTS_END_S = 2.0  # that the processes of a Ray which was shut down take to be gone; the rest is killed
HEAD_PATIENCE_S = 20.0  # a head may come back; Ray gives up after 60 s
OBJECT_STORE_BYTES = 256 << 20  # results are footers; images never pass through the object store of a local run


def start_ray(workers: int, address: str | None) -> None:
    """Connect to the cluster at `address`, or start Ray on this machine with `workers` CPUs. Raises RecipeError, Fatal."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # variables of a job reach this process too: what is set below has them in it
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
    variables = _worker_variables()
    before = {child.pid for child in psutil.Process().children()}
    try:
        with _sigterm_kept():
            if address:
                ray.init(address=address, runtime_env={"env_vars": variables}, **quiet)
            else:
                # By inheritance, not by a runtime environment: for that Ray would throw away the workers that it starts at once, and start others.
                with _environment_of(variables):
                    ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except BaseException as error:  # Ray raises all kinds, a bare Exception among them
        with undisturbed():
            _end_half_started(before)
        if not isinstance(error, Exception):
            raise
        if address:
            raise RecipeError(unreachable(address, error)) from error
        busy = "; it gives itself 30 s, too few for a machine that does much else: run again" if "timed out" in str(error) else "; check `ray status`"
        raise Fatal(f"Ray could not be started on this machine: {error}{busy}, or with --executor local") from error


class Servers:
    """What Ray cannot live without: raylet and GCS where this process started them, else the head of the cluster, by its port.

    Ray itself would wait for a minute and then end this process, without a word of ours and with the lock in place.
    """

    def __init__(self) -> None:
        self.own = [child for child in psutil.Process().children() if _name_of(child) in ("raylet", "gcs_server")]
        address = "" if self.own else str(ray.get_runtime_context().gcs_address)
        self.head = address if address and _answers(address) else ""  # through ray:// it may not be reached from here
        self.heard = time.monotonic()

    def check(self) -> None:
        """Raises Fatal where one of them is gone."""
        for server in self.own:
            with suppress(psutil.NoSuchProcess):
                if server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
                    continue
            raise Fatal(
                f"a process of the Ray that runs the tasks is gone (process {server.pid}: killed, perhaps for want of memory); no row was failed for it. "
                "Run the same command again, with fewer --workers if memory was short"
            )
        if not self.head or _answers(self.head):
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > HEAD_PATIENCE_S:
            raise Fatal(
                f"the head of the Ray cluster at {self.head} has not answered for {HEAD_PATIENCE_S:.0f} s; no row was failed for it. Start a cluster "
                "(`ray start --head`), then run the same command again: it goes on with what is committed"
            )


def _name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 2.0).close()
    except (OSError, ValueError):
        return False
    return True


def _worker_variables() -> dict[str, str]:
    """Workers find the packages where the driver found them, also when pairmill runs from a source tree; stages set their threads themselves."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """ray.init puts a handler of SIGTERM in the place of ours that ends the process without a word: ours comes back, and gets what met the other."""
    ours = signal.getsignal(signal.SIGTERM)
    if ours is None or threading.current_thread() is not threading.main_thread():  # Ray leaves it alone
        yield
        return
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGTERM, ours)
        if error.code == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, ours)


def _end_half_started(before: set[int]) -> None:
    """End a Ray whose start failed or was interrupted: it does not know yet of all processes that it has begun. `before`: children that are none of them."""
    family = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            family += [child, *child.children(recursive=True)] if child.pid not in before else []
    _shut_down()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=AGENTS_END_S)


def _shut_down() -> None:
    """ray.shutdown, which gives SIGTERM back to the system, behind Python's back: it would end this process with the lock in place."""
    ray.shutdown()
    ours = signal.getsignal(signal.SIGTERM)  # None: of a program around this one, which is no Python
    if ours is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


def end_ray() -> None:
    """Disconnect; a Ray that was started by this process is gone afterwards, with all its processes."""
    family: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            family += child.children(recursive=True) if child.name() == "raylet" else []
    _shut_down()
    # Ray kills a raylet that is not gone within a second. Its agents then try for a minute to report that to a cluster which is gone too.
    _, left = psutil.wait_procs(family, timeout=AGENTS_END_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Processes started within the block have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
