"""A run of many rows without images: url_table, url_dup, text_rules, select. Time by phase, peak memory of each process, files and bytes.

The table is made first (URLs of which some stand twice, texts in varied words, boilerplate and file names among them, a score). Prints one JSON line;
exit code 1 where a process came over --max-gib. What is left in --keep is taken up by the next call.
Run: python tests/bench/bench_scale.py [--rows 10000000] [--workers 2] [--rows-per-part 10000] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: scale
input: {kind: url_table, table: null}
stages:
  - url_dup
  - text_rules: {preset: datacomp_basic}
  - select: {top_fraction: {column: score, fraction: 0.3}}
"""
WORDS = (
    "red blue old new small large wooden street house car dog cat garden table river mountain portrait view summer winter morning city beach bridge "
    "child woman man people market kitchen window flower tree horse train boat sunset cloud field stone photo of with and in the on near under behind"
).split()
BLOCK = 100_000


def write_table(path: Path, rows: int) -> None:
    """Every 9th row has the URL of an earlier one, every 31st a boilerplate text, every 37th a file name."""
    if path.is_file():
        return
    words = np.array(WORDS, dtype=object)
    beside = path.with_suffix(".tmp")
    schema = pa.schema([("url", pa.string()), ("alt_text", pa.string()), ("score", pa.float32())])
    with pq.ParquetWriter(beside, schema) as writer:
        for start in range(0, rows, BLOCK):
            numbers = np.arange(start, min(rows, start + BLOCK))
            random = np.random.default_rng(start)
            shown = np.where(numbers % 9 == 8, numbers * 7919 % np.maximum(numbers, 1), numbers)
            urls = [f"https://host{number % 50_021}.example/images/{number:010d}/picture.jpg" for number in shown.tolist()]
            texts = [" ".join(chosen) for chosen in words[random.integers(0, len(words), (len(numbers), 11))].tolist()]
            for place, number in enumerate(numbers.tolist()):
                if number % 31 == 30:
                    texts[place] = "click to enlarge"
                elif number % 37 == 36:
                    texts[place] = f"IMG_{number}.JPG"
            writer.write_table(pa.table({"url": urls, "alt_text": texts, "score": random.random(len(numbers), np.float32)}, schema))
    beside.rename(path)


class Watch:
    """Peak resident memory of every process below the run, by what it is, in GiB; shared pages count for each."""

    def __init__(self, process: subprocess.Popen[str]):
        self.root = psutil.Process(process.pid)
        self.peaks: dict[str, float] = {}

    def look(self) -> None:
        try:
            below = self.root.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in [self.root, *below]:
            try:
                name = "driver" if process.pid == self.root.pid else process.name().split(":")[0][:24]
                self.peaks[name] = max(self.peaks.get(name, 0.0), process.memory_info().rss / 2**30)
            except psutil.NoSuchProcess:
                continue


def phases(events: list[dict]) -> dict[str, float]:
    """Seconds from the events: reading and cutting the input, each resolve, and what lies between."""
    found: dict[str, float] = {}
    scheduled = next((event["seconds"] for event in events if event["event"] == "schedule"), 0.0)
    found["cut the input"] = scheduled
    begun: dict[str, float] = {}
    for event in events:
        if event["event"] == "resolve":
            begun[event["stage"]] = event["seconds"]
        elif event["event"] == "resolved":
            found[f"resolve {event['stage']}"] = event["seconds"] - begun[event["stage"]]
    found["all else"] = events[-1]["seconds"] - sum(found.values())
    return {name: round(seconds, 1) for name, seconds in found.items()}


def stage_seconds(events: list[dict]) -> dict[str, float]:
    """Worker-seconds by stage."""
    found: dict[str, float] = {}
    for event in events:
        if event["event"] == "done":
            found[event["stage"]] = found.get(event["stage"], 0.0) + event["seconds"]
    return {name: round(seconds, 1) for name, seconds in found.items()}


def measure(folder: Path, options: argparse.Namespace) -> dict:
    table, out = folder / f"{options.rows}.parquet", folder / f"run-{options.rows}"
    write_table(table, options.rows)
    (folder / "scale.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "scale.yaml"), "--set", f"input.table={table}", "--out", str(out)]
    command += ["--set", f"input.rows_per_part={options.rows_per_part}", "--progress", "json", "--json"]
    command += ["--executor", options.executor, "--workers", str(options.workers)]
    log = folder / "progress.jsonl"
    started = time.perf_counter()
    with open(log, "w") as errors, open(folder / "summary.json", "w") as answer:
        process = subprocess.Popen(command, cwd=ROOT, stdout=answer, stderr=errors, text=True)
        watch = Watch(process)
        while process.poll() is None:
            watch.look()
            time.sleep(0.5)
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = log.read_text().splitlines()
    if process.returncode:
        raise SystemExit(f"the run ended with exit code {process.returncode}: {lines[-5:]}")
    events = [json.loads(line) for line in lines if line.startswith("{")]
    files = [path for path in out.rglob("*") if path.is_file()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "rows": options.rows, "rows_per_part": options.rows_per_part, "workers": options.workers,
        "seconds": round(seconds, 1), "cpu_seconds_of_the_driver": round(used.ru_utime + used.ru_stime, 1), "rows_per_s": round(options.rows / seconds),
        "phases": phases(events), "worker_seconds": stage_seconds(events),
        "peak_GiB": {name: round(peak, 2) for name, peak in sorted(watch.peaks.items(), key=lambda item: -item[1])[:6]},
        "files": len(files), "bytes_per_row": round(sum(path.stat().st_size for path in files) / options.rows, 1),
        "table_bytes_per_row": round(table.stat().st_size / options.rows, 1), "kept": summary["rows"]["kept"],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rows-per-part", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--executor", default="ray", choices=("ray", "local"))
    parser.add_argument("--max-gib", type=float, default=4.0)
    parser.add_argument("--keep", type=Path, help="make the table and the run here, and leave them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairmill-scale-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, options)
    over = [name for name, peak in found["peak_GiB"].items() if peak > options.max_gib]
    print(json.dumps({"bench": "scale", **found, "over": over}))
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
