"""Ctrl+C and SIGTERM on a real process; the same command goes on and ends where an unbroken run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline import registry
from pipeline.recipe import load_recipe
from pipeline.run import RunOptions, open_run, run

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TOYS = str(HERE / "toys.py")

SLOW = '''
import time
import pyarrow as pa
from pipeline.stage import Params, Stage, tunes


class Slow(Stage):
    """Doubles a number, slowly."""

    name = "slow_double"
    reads = ("value",)
    writes = {"double": pa.int64()}
    batch_size = 10

    class Params(Params):
        pause: float = tunes(0.0, "seconds per batch")

    def compute(self, rows, ctx):
        time.sleep(self.params.pause)
        return [{"double": row["value"] * 2} for row in rows]
'''


SLOW_RAYLET = """
import signal, sys
import psutil
from ray._private.node import Node
from pipeline.ray_session import end_ray, start_ray

if __name__ == "__main__":
    start_ray(1, None)
    (raylet,) = [process for process in psutil.Process().children() if process.name() == "raylet"]
    family = [raylet, *raylet.children(recursive=True)]
    assert len(family) > 2, family
    kill = Node.kill_all_processes

    def stop_first(*args, **options):
        raylet.send_signal(signal.SIGSTOP)
        kill(*args, **options)

    Node.kill_all_processes = stop_first
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    end_ray()
    signal.raise_signal(signal.SIGTERM)  # whose handler ray.shutdown takes away
    assert came == [signal.SIGTERM]
    _, alive = psutil.wait_procs(family, timeout=5)
    sys.exit(f"left: {alive}" if alive else 0)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all tests: a second one of this process may not define a stage of the same name."""
    path = tmp_path_factory.mktemp("plugin") / "slow.py"
    path.write_text(SLOW)
    return path


def command(tmp_path: Path, plugin: Path, out: Path, pause: float, executor: str = "local") -> list[str]:
    (tmp_path / "slow.yaml").write_text("name: slow\ninput: {kind: numbers, rows: 600, rows_per_part: 50}\nstages: [slow_double]\n")
    imports = ["--import", TOYS, "--import", str(plugin)]
    more = ["--set", f"slow_double.pause={pause}", "--executor", executor, "--interval", "0.2", "--workers", "2"]
    return [sys.executable, "-m", "pipeline.cli", "run", str(tmp_path / "slow.yaml"), "--out", str(out), *imports, *more]


def start_and_stop(tmp_path: Path, plugin: Path, out: Path, number: int, executor: str = "local", victim: str = "") -> tuple[int, str, str]:
    """Send a signal, to the driver or to its child of the name `victim`, once two parts are committed; (exit code, standard output, standard
    error). All processes must be gone."""
    pause = 0.3 if victim else 0.05  # Ray is looked after once a second
    process = subprocess.Popen(command(tmp_path, plugin, out, pause, executor), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while len(list((out / "verdicts" / "slow_double").glob("part-*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    (next(child for child in children if child.name() == victim) if victim else process).send_signal(number)
    told, notes = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == [], (process.returncode, told, notes)
    assert executor != "ray" or children
    return process.returncode, told, notes


def check_stopped(tmp_path: Path, plugin: Path, out: Path, code: int, told: str, notes: str) -> None:
    assert code == 130
    assert told == "" and "Traceback" not in notes
    assert not (out / "lock").exists()
    assert "are committed" in notes and "to go on: pairmill run" in notes and str(out) in notes
    check_goes_on(tmp_path, plugin, out)


def check_goes_on(tmp_path: Path, plugin: Path, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    again = subprocess.run(command(tmp_path, plugin, out, 0.0), cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0 and "600 in = " in again.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "committed work was done again"
    registry.import_file(TOYS)
    registry.import_file(str(plugin))
    unbroken = run(load_recipe(str(tmp_path / "slow.yaml")), tmp_path / "unbroken", RunOptions(executor="local"))
    assert open_run(out).state_digest() == unbroken.view.state_digest()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(tmp_path, plugin, number):
    out = tmp_path / "run"
    check_stopped(tmp_path, plugin, out, *start_and_stop(tmp_path, plugin, out, number))


def test_ctrl_c_with_ray_leaves_no_worker_behind(tmp_path, plugin):
    """Starts Ray (10 to 25 s), as the next one does."""
    out = tmp_path / "run"
    check_stopped(tmp_path, plugin, out, *start_and_stop(tmp_path, plugin, out, signal.SIGINT, "ray"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_ray_that_goes_is_told_and_the_same_command_goes_on(tmp_path, plugin, name):
    """Ray itself would end the driver after a minute, without a word of ours and with the lock in place."""
    out = tmp_path / "run"
    code, _, notes = start_and_stop(tmp_path, plugin, out, signal.SIGKILL, "ray", name)
    assert code == 1 and "error: a process of the Ray that runs the tasks is gone" in notes and "Traceback" not in notes
    assert not (out / "lock").exists()
    check_goes_on(tmp_path, plugin, out)


@pytest.mark.slow
def test_sigterm_with_ray_stops_cleanly(tmp_path, plugin):
    """ray.init replaces our handler of SIGTERM by one that ends the process with exit code 15."""
    out = tmp_path / "run"
    check_stopped(tmp_path, plugin, out, *start_and_stop(tmp_path, plugin, out, signal.SIGTERM, "ray"))


def test_a_raylet_too_slow_to_end_in_the_second_that_ray_gives_it_leaves_no_agent_behind(tmp_path):
    """Its two agents would live on for about a minute."""
    script = tmp_path / "slow_raylet.py"
    script.write_text(SLOW_RAYLET)
    ended = subprocess.run([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
