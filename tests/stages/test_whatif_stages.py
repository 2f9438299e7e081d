"""whatif over the real stages that judge and resolve by columns, on values made for the benchmark: every row's fate is that of a real run."""

from __future__ import annotations

import random
from pathlib import Path

from pipeline.changed import changed_run
from pipeline.whatif_report import whatif
from tests.bench import bench_whatif

ROWS, PER_PART = 3000, 1000


def test_random_changes_are_told_as_a_run_decides_them(tmp_path: Path) -> None:
    out = tmp_path / "run"
    bench_whatif.build(out, ROWS, PER_PART)
    draw = random.Random(0)
    for nth in range(3):
        sets = [
            f"clip_score.min={draw.choice([0.1, 0.25, 0.3])}", f"mllm_score.thresholds={{semantic_understanding: {draw.choice([10, 55])}}}",
            f"near_dup.search_distance={draw.choice([3, 4])}", f"dedup.max_distance={draw.choice([1, 2, 3])}",
            f"dedup.keeper={draw.choice(['pixels', 'clip_score'])}",
            "select.where=similarity >= 0.15 and n_words > 3", "balance.caps=[{by: cluster, max: 1}]", "balance.quota={by: tag, max: {tag1: 3, tag2: 3}}",
        ]  # fmt: skip
        assert bench_whatif.check(out, tmp_path / f"beside{nth}", sets) == 0
        told = whatif(changed_run(out, sets), tokens=False)
        assert told["resolved_again"] == ["near_dup", "dedup", "balance"] and not told["undecided"]
        assert whatif(changed_run(out, sets), tokens=False) == {**told, "cache": {**told["cache"], "files_made": 0}}  # all that is kept is found again
        assert list((out / "cache" / "whatif").glob("dedup.index.hashes@*")) and list((out / "cache" / "whatif").glob("balance.index.order.*"))
        assert {entry["reason"] for entry in told["stages"] if entry["now"] != entry["then"]} >= {"near_dup", "balanced_out", "low_clip", "expression"}
