"""The engine killed three times and the driver once while images are captioned, against the same run unbroken.

A Qwen2-VL of a few thousand weights, greedy answers of a fixed length. A log beside the engine gets one line per request sent to it and one
per answer. Asserted: every row has its one answer (or the same failure as unbroken),
nothing committed or cached is asked again, a request is answered twice only where the first
answer was not yet written when the driver was killed, and texts equal to the unbroken run's for at least 99 % of rows. Prints one JSON line, with
the texts that differ.
Run: python tests/bench/bench_mllm_kills.py [--images 2000] [--tokens 12]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mllm_bench import ROOT, make_model, vllm_spec, write_tars  # noqa: E402

RUN = """
import json, os, sys
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from stages.models.vllm import VllmChat

log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
plain = VllmChat._answer

async def noted(self, request):
    key = request.key(self.digest).hex()
    os.write(log, f"sent {key}\\n".encode())
    answer = await plain(self, request)
    os.write(log, f"answered {key}\\n".encode())
    return answer

VllmChat._answer = noted
run(build_recipe(json.loads(sys.argv[1])), sys.argv[2], RunOptions(executor="local"))
"""
ENGINE_AT, DRIVER_AT = (0.2, 0.45, 0.85), 0.65  # shares of all images that are answered by then


def start(recipe: dict[str, Any], out: Path, log: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", RUN, json.dumps(recipe), str(out), str(log)], env=env, stdout=subprocess.DEVNULL)


def log_lines(log: Path) -> list[tuple[str, str]]:
    return [(kind, key) for kind, _, key in (line.partition(" ") for line in (log.read_text().splitlines() if log.exists() else []))]


def answered(log: Path) -> int:
    return len({key for kind, key in log_lines(log) if kind == "answered"})


def cached(out: Path) -> set[str]:
    """Keys of all answers in the run's cache."""
    return {key.hex() for file in (out / "cache").rglob("part-*.parquet") for key in pq.read_table(file, columns=["key"])["key"].to_pylist()}


def kill_engine(driver: int) -> bool:
    found = [child for child in psutil.Process(driver).children(recursive=True) if child.name().startswith("VLLM")]
    for child in found:
        child.kill()
    return bool(found)


def broken(recipe: dict[str, Any], out: Path, log: Path, images: int) -> tuple[set[str], int, dict[str, float]]:
    """Run to the end through all kills: (keys in the cache when the driver was killed, length of the log then, facts)."""
    process, began = start(recipe, out, log), time.perf_counter()
    known: set[str] = set()
    length, engines, driver_killed = 0, 0, False
    while (code := process.poll()) is None or not driver_killed:
        assert code is None, "the driver ended by itself before it was killed"
        done = answered(log) / images
        if engines < len(ENGINE_AT) and done >= ENGINE_AT[engines] and (driver_killed or engines < 2):
            engines += kill_engine(process.pid)
        if not driver_killed and done >= DRIVER_AT:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            known, length, driver_killed = cached(out), len(log_lines(log)), True
            process = start(recipe, out, log)
        time.sleep(0.1)
    assert process.wait() == 0 and engines == len(ENGINE_AT), f"{engines} engines killed, code {process.returncode}"
    return known, length, {"seconds": round(time.perf_counter() - began, 1), "engine_kills": engines, "driver_kills": 1}


def texts(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "values" / "caption").glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=["outcome", "text", "failure"]).to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairmill-mllm-kills-") as name:
        folder = Path(name)
        make_model(folder / "model", {}, {}, 96)
        write_tars(folder / "tars", options.images, 64)
        caption = {"prompt_text": "Describe the image.", "max_tokens": options.tokens, "min_tokens": options.tokens}
        recipe: dict[str, Any] = {"input": {"kind": "webdataset_tars", "tars": str(folder / "tars"), "rows_per_part": 500}}
        recipe |= {"models": {"mllm": vllm_spec(folder / "model", max_num_seqs=16)}, "stages": ["read_images", {"caption": caption}]}
        known, length, facts = broken(recipe, folder / "broken", folder / "log", options.images)
        if start(recipe, folder / "unbroken", folder / "log2").wait():
            raise SystemExit("the unbroken run failed")
        lines, after = log_lines(folder / "log"), log_lines(folder / "log")[length:]
        ours, theirs = texts(folder / "broken"), texts(folder / "unbroken")
        usual = Counter(key for kind, key in log_lines(folder / "log2") if kind == "sent")
    sent, twice = Counter(key for kind, key in lines if kind == "sent"), Counter(key for kind, key in lines if kind == "answered")
    asked_again = known & {key for kind, key in after if kind == "sent"}
    unwritten = {key for kind, key in lines[:length] if kind == "answered"} - known
    differ = [(place, one["text"], other["text"]) for place, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one["text"] != other["text"]]
    line: dict[str, Any] = {"bench": "mllm_kills", "images": options.images, **facts, "rows_with_a_text": sum(row["outcome"] == 1 for row in ours)}
    line["bad_answers"] = sum(row["failure"] == "bad_answer" for row in ours)
    line |= {"requests": sent.total(), "requests_unbroken": usual.total(), "asked_again_though_cached": len(asked_again)}
    line |= {"cached_when_the_driver_was_killed": len(known), "answered_twice": sum(count > 1 for count in twice.values()), "answers_lost": len(unwritten)}
    line |= {"equal_texts": round(1 - len(differ) / len(ours), 4), "differ": differ[:20]}
    print(json.dumps(line))
    # a model of random weights writes nothing but spaces now and then: a bad_answer, which must be the same row's in both runs
    ended = [[(row["outcome"], row["failure"]) for row in some] for some in (ours, theirs)]
    assert len(ours) == options.images and ended[0] == ended[1] and {failure for _, failure in ended[0]} <= {None, "bad_answer"}, Counter(ended[0])
    assert set(sent) == set(usual) and not asked_again and all(key in unwritten for key, count in twice.items() if count > 1)
    assert len(differ) <= 0.01 * len(ours)


if __name__ == "__main__":
    main()
