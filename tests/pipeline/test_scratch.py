"""Temporary folders: a killed process leaves one behind, the next one removes it, and nobody touches one in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.scratch import scratch_folder

HOLD = "import time\nfrom pipeline.scratch import scratch_folder\nwith scratch_folder('toy') as folder:\n    print(folder, flush=True)\n    time.sleep(60)\n"


def holder(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)})
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "pairmill-toy-of-somebody-else"
    other.mkdir()
    processes = [holder(tmp_path), holder(tmp_path)]
    try:
        (killed, left), (_, used) = processes
        (left / "evidence").write_bytes(b"x" * 1000)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with scratch_folder("toy") as mine:
            assert left.is_dir() and used.is_dir() and mine.is_dir()  # a folder this young may be about to be locked
        assert not mine.exists()
        for folder in (left, used):
            os.utime(folder / "owner", (time.time() - 100,) * 2)
        with scratch_folder("toy"):
            assert not left.exists() and (used / "owner").exists() and other.is_dir()
    finally:
        for process, _ in processes:
            process.kill()
            process.wait()
