"""What the machine adds to the work: stages x parts of busy CPU in `compute`, against that work divided by the workers.

Real commits with fsync; Ray is up before the clock starts; the median of the repeats is printed as one JSON line.
Run: python tests/bench/bench_orchestration.py [--rows-per-part 1000] [--parts 300] [--stages 10] [--ms 100] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import registry
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run

PLUGIN = Path(__file__).with_name("busy_stage.py")


def one_run(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    stages = [{f"busy{i}": {"use": "busy", "ms": arguments.ms}} for i in range(arguments.stages)]
    rows = arguments.parts * arguments.rows_per_part
    recipe = build_recipe({"name": "busy", "input": {"kind": "counter", "rows": rows, "rows_per_part": arguments.rows_per_part}, "stages": stages})
    clock: dict[str, float] = {}

    def notify(kind: str, what: object) -> None:
        if kind == "start":
            clock.setdefault("first", time.perf_counter())
        if kind == "done":
            clock["last"] = time.perf_counter()

    result = run(recipe, folder, RunOptions(executor="ray", workers=arguments.workers), notify)
    assert all(result.tally.computed[stage.instance] == rows for stage in recipe.stages)
    wall = clock["last"] - clock["first"]
    busy = sum(float(p.read_text()) for p in (folder / "busy").iterdir())
    return {"wall": wall, "busy": busy, "ratio": wall / (busy / arguments.workers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-per-part", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=300)
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--ms", type=float, default=100.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    registry.import_file(str(PLUGIN))
    found = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
            import os

            os.environ["PAIRMILL_BENCH_BUSY"] = str(Path(folder) / "busy")
            (Path(folder) / "busy").mkdir()
            found.append(one_run(arguments, Path(folder)))
    ratios = [round(f["ratio"], 4) for f in found]
    print(
        json.dumps(
            {
                "bench": "orchestration",
                "stages": arguments.stages,
                "parts": arguments.parts,
                "rows_per_part": arguments.rows_per_part,
                "workers": arguments.workers,
                "busy_s": round(found[-1]["busy"], 1),
                "wall_s": round(found[-1]["wall"], 1),
                "ratios": ratios,
                "median_ratio": statistics.median(ratios),
            }
        )
    )


if __name__ == "__main__":
    main()
