"""Memory of engine, driver and decoders while many distinct images are captioned: it must be flat after the first 2,000.

A Qwen2-VL of a few thousand weights, few tokens per answer. Every second the proportional set sizes of all processes of the run are
added up, those of the engine apart, and set beside the number of answers committed to the cache of answers. Prints one JSON line: the
largest sum until --first images were answered, the largest after, and their ratio; and the largest sum in every further --first images.
Run: python tests/bench/bench_mllm_memory.py [--images 20000] [--first 2000] [--side 48] [--tokens 4] [--most-seconds S]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mllm_bench import ROOT, make_model, vllm_spec, write_tars  # noqa: E402

RUN = """
import json, sys
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
run(build_recipe(json.loads(sys.argv[1])), sys.argv[2], RunOptions(executor="local"))
"""


class Answered:
    """Answers in the cache of a run; a file is counted once, files that were merged into another one not again."""

    def __init__(self, out: Path):
        self.out = out
        self.most = 0

    def count(self) -> int:
        total = 0
        for file in (self.out / "cache").rglob("part-*.parquet"):
            try:
                total += pq.read_metadata(file).num_rows
            except (OSError, ValueError):
                continue
        self.most = max(self.most, total)  # between a merge and the removal of the merged files there are too many for a moment
        return total


def sizes(pid: int) -> tuple[int, int]:
    """(bytes of all processes, of the engine's) as proportional set sizes."""
    total = engine = 0
    root = psutil.Process(pid)
    for member in [root, *root.children(recursive=True)]:
        try:
            pss, name = member.memory_full_info().pss, member.name()
        except psutil.Error:
            continue
        total += pss
        engine += pss if name.startswith("VLLM") else 0
    return total, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=2000)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--processor-cache-gb", type=float, default=0.05, help="vLLM's cache of prepared images: of small ones, 1 GB is not full after 2,000")
    parser.add_argument("--most-seconds", type=float, default=math.inf, help="end the run then, and tell of the images answered so far")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairmill-mllm-memory-") as name:
        folder, out = Path(name), Path(name) / "run"
        make_model(folder / "model", {}, {}, 96)
        write_tars(folder / "tars", options.images, options.side)
        spec = vllm_spec(folder / "model", max_num_seqs=64, processor_cache_gb=options.processor_cache_gb)
        caption = {"prompt_text": "Describe the image.", "max_tokens": options.tokens, "min_tokens": options.tokens}
        recipe = {"input": {"kind": "webdataset_tars", "tars": str(folder / "tars"), "rows_per_part": 1000}, "models": {"mllm": spec}}
        recipe["stages"] = ["read_images", {"caption": caption}]  # type: ignore[assignment]
        env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(recipe), str(out)], env=env, stdout=subprocess.DEVNULL)
        samples: list[tuple[int, int, int]] = []
        answered, started, first_at = Answered(out), time.perf_counter(), 0.0
        while process.poll() is None and time.perf_counter() - started < options.most_seconds:
            done = answered.count()
            if done and not first_at:
                first_at = time.perf_counter()
            try:
                samples.append((done, *sizes(process.pid)))
            except psutil.Error:
                break
            time.sleep(1)
        ended = time.perf_counter()
        ended_early = process.poll() is None
        if ended_early:
            process.terminate()
        if process.wait() and not ended_early:
            raise SystemExit("the run failed")
        done = answered.count()
    print(json.dumps(summary(options, samples, done, ended - started, ended - first_at)))


def summary(options: argparse.Namespace, samples: list[tuple[int, int, int]], done: int, seconds: float, busy: float) -> dict[str, Any]:
    """Peaks before and after the first images, in MB."""
    line: dict[str, Any] = {"bench": "mllm_memory", "images": options.images, "answered": done, "first": options.first, "seconds": round(seconds, 1)}
    line["images_per_s"] = round(done / busy, 1)
    for place, who in ((1, "all"), (2, "engine"), (0, "driver")):
        values = [(one[0], one[place] if place else one[1] - one[2]) for one in samples]
        before = max(value for images, value in values if images <= options.first)
        after = max((value for images, value in values if images > options.first), default=0)
        steps = {str(at): round(max((v for images, v in values if at - options.first < images <= at), default=0) / 1e6, 1) for at in
                 range(options.first, max(values)[0] + options.first, options.first)}  # fmt: skip
        line[who] = {"until_first_mb": round(before / 1e6, 1), "after_mb": round(after / 1e6, 1), "ratio": round(after / before, 3), "steps_mb": steps}
    return line


if __name__ == "__main__":
    main()
