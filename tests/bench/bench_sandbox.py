"""Photos per second through the decode sandbox against the same work in this process: a plain loop, or as many threads as decoders.

Work: `verify` (decode and keep the bytes, with their hash) and `resize` (to 256 on the longer side, JPEG 95). Both sides get
the photos in the same order, in turns; the median of the repeats counts. Prints one JSON line.
Run: python tests/bench/bench_sandbox.py [--photos FOLDER] [--rounds 4] [--repeats 5] [--processes 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.images.decode_tasks import perform, task_bytes  # noqa: E402
from stages.images.decoders import DecoderLimits, Decoders, InProcess, Normalized  # noqa: E402
from stages.images.normalize import ImageRules  # noqa: E402
from stages.images.sandbox import Sandbox  # noqa: E402

WORK = {"verify": ImageRules(), "resize": ImageRules(resize_mode="keep_ratio_largest", image_size=256)}
UNDER_WAY = 64  # as many images as `download` has requests


def through(decoders: Decoders, photos: list[bytes], rules: ImageRules) -> None:
    waiting: deque[Future] = deque()
    for photo in photos:
        waiting.append(decoders.normalize(photo, rules))
        if len(waiting) >= UNDER_WAY:
            assert isinstance(waiting.popleft().result(), Normalized)
    while waiting:
        assert isinstance(waiting.popleft().result(), Normalized)


def plain_loop(photos: list[bytes], rules: ImageRules) -> None:
    task = task_bytes("normalize", **asdict(rules))
    for photo in photos:
        assert "failure" not in perform(task, photo)[0]


def rate(work: Callable[[], None], n: int) -> float:
    started = time.perf_counter()
    work()
    return n / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", default=os.environ.get("PAIRMILL_TEST_DATA", ".") + "/photos_open")
    parser.add_argument("--rounds", type=int, default=4, help="how often the photos are gone through in one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(Path(options.photos).rglob("*.jpg"))] * options.rounds
    if not photos:
        sys.exit(f"no photos below {options.photos}: name a folder with --photos")
    limits = DecoderLimits(processes=options.processes)
    sandbox, threads = Sandbox(limits), InProcess(limits)
    line: dict = {"bench": "sandbox", "photos": len(photos), "mean_bytes": sum(map(len, photos)) // len(photos), "processes": options.processes}
    for name, rules in WORK.items():
        through(sandbox, photos[: len(photos) // options.rounds], rules)
        inside, outside = [], []
        for _ in range(options.repeats):
            direct = (lambda rules=rules: plain_loop(photos, rules)) if options.processes == 1 else (lambda rules=rules: through(threads, photos, rules))
            inside.append(rate(direct, len(photos)))
            outside.append(rate(lambda rules=rules: through(sandbox, photos, rules), len(photos)))
        line[name] = {
            "in_process_per_s": round(statistics.median(inside), 1), "sandbox_per_s": round(statistics.median(outside), 1),
            "median_ratio": round(statistics.median(b / a for a, b in zip(inside, outside, strict=True)), 3),
        }  # fmt: skip
    sandbox.close()
    threads.close()
    print(json.dumps(line))


if __name__ == "__main__":
    main()
