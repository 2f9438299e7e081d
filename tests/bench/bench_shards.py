"""Rate of writing shards (digests, comparison with the stored digests and fsync included) against `cat` plus fsync.

    python tests/bench/bench_shards.py [--gigabytes 4] [--size 160000] [--folder DIR] [--rounds 3]

Stores random bytes as images, lets the job's `run_task` write them as shards, and copies the same stored tars with `cat` and
fsync, in turns. Prints one JSON line with the median rates, in MB of image bytes per second, and their ratio. The stored
tars are in the page cache for both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import registry
from pipeline.digests import digest_of
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, open_run, run
from pipeline.stage import Params, Source, Stage
from schemas.sample import sample_id


class BenchRows(Source):
    """Rows with a URL and a text."""

    name = "bench_rows"

    class Params(Params):
        rows: int

    def fingerprint(self):
        return digest_of("bench_rows", self.params.rows)

    def batches(self):
        for start in range(0, self.params.rows, 1000):
            numbers = range(start, min(start + 1000, self.params.rows))
            urls, texts = [f"https://example.org/images/{n}.jpg" for n in numbers], [f"a photo of thing number {n} on a table" for n in numbers]
            yield pa.record_batch(
                {
                    "sample_id": pa.array([sample_id("bench", u, t) for u, t in zip(urls, texts, strict=True)], pa.binary(16)),
                    "url": urls,
                    "alt_text": texts,
                    "alt_text_cut": [False] * len(urls),
                    "failure": pa.nulls(len(urls), pa.string()),
                    "failure_detail": pa.nulls(len(urls), pa.string()),
                }
            )


class BenchImages(Stage):
    """Stores `size` random bytes per row; to the shard writer bytes are bytes."""

    name = "bench_images"
    reads = ("sample_id",)
    writes = {
        "image_sha256": pa.binary(32), "tar": pa.string(), "offset": pa.int64(), "size": pa.int64(),
        "width": pa.int32(), "height": pa.int32(), "format": pa.string(),
    }  # fmt: skip
    writes_blobs = True
    batch_size = None

    class Params(Params):
        size: int

    def compute(self, rows, ctx):
        out = []
        for row in rows:
            seed = int.from_bytes(row["sample_id"][:8], "little")
            data = np.random.default_rng(seed).bytes(self.params.size)
            tar, offset, size = ctx.blobs.add(row["sample_id"].hex(), "jpg", data)
            place = {"tar": tar, "offset": offset, "size": size, "width": 512, "height": 512, "format": "jpg"}
            out.append({"image_sha256": hashlib.sha256(data).digest(), **place})
        return out


def timed_cat(sources: list[Path], target: Path) -> float:
    """Seconds of `cat SOURCES > TARGET` and fsync."""
    started = time.perf_counter()
    with open(target, "wb") as file:
        subprocess.run(["cat", *map(str, sources)], stdout=file, check=True)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def timed_shards(view, job) -> float:
    """Seconds of run_task over all groups, in this process alone."""
    shutil.rmtree(view.root / "jobs", ignore_errors=True)
    shutil.rmtree(view.dataset, ignore_errors=True)
    tasks = job.tasks(view)
    started = time.perf_counter()
    samples = sum(job.run_task(view, task) for task in tasks)
    seconds = time.perf_counter() - started
    assert samples == sum(view.parts), f"{samples} of {sum(view.parts)} samples were written"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--size", type=int, default=160_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    registry._register_from(sys.modules["__main__"], "bench_shards")
    rows = int(options.gigabytes * 1e9 / options.size)
    recipe = build_recipe(
        {
            "name": "bench", "input": {"kind": "bench_rows", "rows": rows, "rows_per_part": max(1, min(10_000, rows // 4))},
            "stages": [{"bench_images": {"size": options.size}}], "jobs": ["write_shards"],
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(recipe, folder, RunOptions(executor="local", jobs=False))
        view = open_run(folder)  # without the lock of the run, which is over
        sources = sorted((Path(folder) / "blobs").rglob("*.tar"))
        subprocess.run(["sync"], check=True)
        cat, shards = [], []
        for _ in range(options.rounds):
            cat.append(timed_cat(sources, Path(folder) / "cat.out"))
            shards.append(timed_shards(view, recipe.jobs[0]))
    megabytes = rows * options.size / 1e6
    result = {
        "samples": rows, "image_bytes": options.size, "cat_MB_s": round(megabytes / statistics.median(cat)),
        "shards_MB_s": round(megabytes / statistics.median(shards)), "shards_samples_s": round(rows / statistics.median(shards)),
        "ratio": round(statistics.median(cat) / statistics.median(shards), 3),
        "cat_s": [round(s, 2) for s in cat], "shards_s": [round(s, 2) for s in shards],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
