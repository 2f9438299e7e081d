"""The experiment on real photos, very small: every step gives its figures, and a second call does none of it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "bench" / "real_input.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(os.environ.get("PAIRMILL_TEST_DATA", ""), "flickr8k_train").is_dir(), reason="PAIRMILL_TEST_DATA names no flickr8k_train"),
]


def experiment(out: Path) -> subprocess.CompletedProcess[str]:
    sizes = ["--seeds", "1", "--photos", "60", "--held-out", "20", "--steps", "8", "--batch-size", "32", "--threads", "1"]
    return subprocess.run([sys.executable, str(PROGRAM), "--out", str(out), *sizes], capture_output=True, text=True, timeout=290)


def test_all_steps_of_the_experiment(tmp_path):
    first = experiment(tmp_path / "out")
    assert first.returncode == 0, first.stderr[-2000:]
    steps = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "steps").iterdir()}
    assert set(steps) == {f"0-{name}" for name in ("scorer_a", "scorer_b", "held_out", "keep_0.9", "keep_0.7", "keep_0.5", "kept", "raw", "true")}
    whole, kept, halves = steps["0-raw"], steps["0-kept"], [steps["0-scorer_a"], steps["0-scorer_b"]]
    assert whole["kinds"]["photo"] == 300 == sum(half["kinds"]["photo"] for half in halves)
    assert whole["kinds"]["bad_images"] > 300 and whole["kinds"]["near_dups"] > 30
    assert 0.2 < whole["swapped_share"] < 0.4 and steps["0-true"]["swapped_share"] == 0 and steps["0-true"]["kinds"] == {"photo": 300}
    assert kept["rows"] == int(0.7 * whole["rows"]) == steps["0-keep_0.7"]["rows"] and 0 <= kept["swapped_share"] <= 1
    assert steps["0-held_out"]["rows"] == 100 and 0 < steps["0-held_out"]["auc_a"] < 1
    assert 1 <= kept["image_to_text_median_rank"] <= 20 and f"| image_to_text_recall@10 | {whole['image_to_text_recall@10']:.4f}" in first.stdout
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "run").rglob("*.parquet")}
    again = experiment(tmp_path / "out")
    assert again.stdout == first.stdout and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "run").rglob("*.parquet")}
