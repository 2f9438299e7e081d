"""Peak memory of a run over 5 KB images at two sizes: it must depend on the part, not on the dataset.

Samples every process below the run (driver, Ray's own processes, workers) and shared memory twice a second: the sum of
proportional set sizes, and the largest single process. Prints one JSON line with both peaks and their ratios.
Run: python tests/bench/bench_memory.py [--small 20000] [--large 200000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from stages.demo.world_server import free_port  # noqa: E402

RECIPE = """
name: memory
input: {kind: url_table, table: null, rows_per_part: 1000}
stages:
  - url_dup
  - repeated_text: {max_count: 1000000}
  - download: {allow_private: true}
  - exact_dup
jobs:
  - write_shards: {max_samples: 10000, parts_per_group: 10, embeddings: false}
"""


def write_table(path: Path, rows: int, port: int) -> None:
    with pq.ParquetWriter(path, pa.schema([("url", pa.string()), ("alt_text", pa.string())])) as writer:
        for start in range(0, rows, 50_000):
            numbers = range(start, min(rows, start + 50_000))
            urls, texts = [f"http://127.0.0.1:{port}/{i}.jpg" for i in numbers], [f"a photo of thing number {i}" for i in numbers]
            writer.write_table(pa.table({"url": urls, "alt_text": texts}))


def shared_memory() -> int:
    stat = psutil.disk_usage("/dev/shm")
    return stat.used


def measure(folder: Path, rows: int, port: int) -> dict[str, float]:
    table, recipe = folder / f"{rows}.parquet", folder / "recipe.yaml"
    write_table(table, rows, port)
    recipe.write_text(RECIPE)
    before = shared_memory()
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--out", str(folder / f"run{rows}"), "--set", f"input.table={table}"]
    started = time.perf_counter()
    command += ["--executor", "ray", "--workers", "2", "--progress", "lines", "--interval", "60"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = {"total": 0, "process": 0, "shared": 0}
    who = ""
    while process.poll() is None:
        total, shared = 0, max(0, shared_memory() - before)
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                pss = member.memory_full_info().pss
                name = " ".join(member.cmdline())[:60]
            except psutil.Error:
                continue
            total += pss
            if pss > peak["process"]:
                peak["process"], who = pss, name
        peak["total"] = max(peak["total"], total)
        peak["shared"] = max(peak["shared"], shared)
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the run of {rows} rows failed")
    megabytes = {f"peak_{key}_mb": round(value / 1e6, 1) for key, value in peak.items()}
    return {"rows": rows, "seconds": round(time.perf_counter() - started, 1), **megabytes, "largest_process": who}  # type: ignore[dict-item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--large", type=int, default=200_000)
    arguments = parser.parse_args()
    port = free_port()
    server = subprocess.Popen([sys.executable, str(Path(__file__).with_name("many_images.py")), str(port)])
    try:
        time.sleep(2)
        with tempfile.TemporaryDirectory(prefix="pairmill-memory-") as folder:
            small, large = (measure(Path(folder), rows, port) for rows in (arguments.small, arguments.large))
    finally:
        server.terminate()
    ratios = {key: round(large[key] / small[key], 3) for key in ("peak_total_mb", "peak_process_mb")}
    print(json.dumps({"bench": "memory", "small": small, "large": large, "ratio": ratios}))


if __name__ == "__main__":
    main()
