"""`make demo-effect`: the demo's pair of trainings with several seeds, and what curation is worth beyond their spread."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from pipeline.recipe import load_recipe
from pipeline.run import RunOptions, run
from stages.demo.main import RECALLS, RawRun, demo_world, note, recipe_settings
from stages.demo.world_server import WorldServer


def train_pair(root: Path, rows: int, seed: int, training_seed: int) -> dict[str, dict[str, float]]:
    """Recalls of a training on raw rows and of one on curated rows, from one training seed, on one world."""
    world, pairs = demo_world(root / f"world-{seed}", rows, seed)
    out = root / f"seed-{training_seed}"
    out.mkdir(parents=True, exist_ok=True)
    with WorldServer(world.folder, world.port), RawRun(world, pairs, out, training_seed) as raw:
        curated = run(load_recipe("demo", recipe_settings(world, pairs, training_seed)), out / "curated", RunOptions(executor="local"))
        raw_jobs = raw.wait()
    return {
        "raw": {key: raw_jobs["evaluate"][key] for key in RECALLS},
        "curated": {key: curated.jobs["evaluate"][key] for key in RECALLS},
    }


def summary(pairs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per recall: mean and standard deviation of each side, the difference, and its standard error (unpaired)."""
    found: dict[str, dict[str, float]] = {}
    for key in RECALLS:
        raw, curated = [p["raw"][key] for p in pairs], [p["curated"][key] for p in pairs]
        spread = math.sqrt((statistics.variance(raw) + statistics.variance(curated)) / len(pairs)) if len(pairs) > 1 else math.nan
        difference = statistics.fmean(curated) - statistics.fmean(raw)
        found[key] = {
            "raw_mean": statistics.fmean(raw),
            "raw_std": statistics.stdev(raw) if len(raw) > 1 else math.nan,
            "curated_mean": statistics.fmean(curated),
            "curated_std": statistics.stdev(curated) if len(raw) > 1 else math.nan,
            "difference": difference,
            "standard_error": spread,
            "in_standard_errors": difference / spread if spread else math.inf,
        }
    return found


def print_table(found: dict[str, dict[str, float]], seeds: int) -> None:
    """A Markdown table on standard output."""
    print(f"| recall, {seeds} seeds | raw | curated | difference | standard errors |\n|---|---|---|---|---|")
    for key, row in found.items():
        sides = [f"{row[f'{side}_mean']:.1%} ± {row[f'{side}_std']:.1%}" for side in ("raw", "curated")]
        print(f"| {key} | {sides[0]} | {sides[1]} | {row['difference']:+.1%} ± {row['standard_error']:.1%} | {row['in_standard_errors']:.1f} |")


def main(arguments: list[str] | None = None) -> int:
    """Train all pairs; exit code 1 when some recall is not better by more than two standard errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    pairs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        pairs.append(train_pair(options.out, options.rows, 0, seed))
        note(f"seed {seed}: {json.dumps(pairs[-1])}")
    found = summary(pairs)
    (options.out / "effect.json").write_text(json.dumps({"pairs": pairs, "summary": found}, indent=1))
    print_table(found, options.seeds)
    return 0 if all(row["in_standard_errors"] > 2 for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
