"""What a worker pays for indexes: memory and time of `known_dup` and of the look-up in `decontaminate`, at sizes of real use.

    bench_index.py [--known 1000000] [--rows 20000] [--evaluation 100000 1000000]

known_dup: an index of `--known` images of random hashes, and `--rows` new rows, of which a tenth each has known bytes and a known hash with up to six
bits changed; what is found is compared with what was planted. decontaminate: 29 random hashes per evaluation picture, and one query per row at 10 bits. Times
are of the processor, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.stage import Context
from stages.dups.lookup import HashTable
from stages.images.leaks import windows
from stages.index.files import SUFFIX, make_index, write_index
from stages.known_dup import KnownDup, KnownDupParams


def resident() -> float:
    """Bytes of this process that lie in memory."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def images(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    """Digests of URLs and of bytes (uint8 [N, 32] both) and hashes (uint8 [N, 8]) of the known images, the same each time; and a generator behind them."""
    draw = np.random.default_rng(0)
    urls, digests = (draw.integers(0, 256, (count, 32), dtype=np.uint8) for _ in range(2))
    return urls, digests, draw.integers(0, 256, (count, 8), dtype=np.uint8), draw


def known_index(count: int, path: Path) -> dict[str, Any]:
    urls, digests, hashes, _ = images(count)
    columns = {
        "item": [f"{at:032x}" for at in range(count)], "raw_sha256": fixed(digests), "url_sha256": fixed(urls), "phash": fixed(hashes),
        "phash_quality": pa.array(np.full(count, 90, np.int16)),
    }  # fmt: skip
    started = time.process_time()
    write_index(make_index("known", pa.table(columns)), path)
    return {"images": count, "written_s": round(time.process_time() - started, 1), "index_mb": round(path.stat().st_size / 1e6, 1)}


def known(count: int, rows: int, path: Path) -> dict[str, Any]:
    urls, digests, hashes, draw = images(count)
    asked = [row_of(at, count, digests, hashes, draw) for at in range(rows)]
    del digests, urls, hashes
    pa.array([0])  # what it imports is not the index's
    stage = KnownDup(KnownDupParams(indexes=(str(path),), urls=False), "known_dup")
    before, started = resident(), time.process_time()
    stage.compute(asked[:1], Context("known_dup", 0))
    loaded, load_s = resident() - before, time.process_time() - started
    started = time.process_time()
    answers = [answer for top in range(0, rows, 4096) for answer in stage.compute(asked[top : top + 4096], Context("known_dup", 0))]
    seconds = time.process_time() - started
    found = {kind: sum(a["known_kind"] == kind for a in answers) for kind in ("bytes", "near")}  # type: ignore[index]
    planted = {kind: sum(row["planted"] == kind for row in asked) for kind in ("bytes", "near")}
    right = all(row["planted"] is None or a["known_item"] == f"known/{row['at']:032x}" for row, a in zip(asked, answers, strict=True))  # type: ignore[index]
    return {
        "known": count, "load_s": round(load_s, 1), "bytes_of_memory_per_image": round(loaded / count), "us_per_row": round(1e6 * seconds / rows, 1),
        "planted": planted, "found": found, "all_planted_found_at_their_item": right,
    }  # fmt: skip


def fixed(values: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(values.shape[1]), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def row_of(at: int, count: int, digests: np.ndarray, hashes: np.ndarray, draw: np.random.Generator) -> dict[str, Any]:
    """A tenth of the rows has known bytes, a tenth a hash near a known one; the others are new."""
    which = int(draw.integers(count))
    kind = {0: "bytes", 1: "near"}.get(at % 10)
    digest = digests[which] if kind == "bytes" else draw.integers(0, 256, 32, dtype=np.uint8)
    hash_ = draw.integers(0, 256, 8, dtype=np.uint8)
    if kind == "near":
        bits = np.unpackbits(hashes[which])
        bits[draw.choice(64, int(draw.integers(7)), replace=False)] ^= 1
        hash_ = np.packbits(bits)
    return {"url": None, "raw_sha256": digest.tobytes(), "phash": hash_.tobytes(), "phash_quality": 90, "planted": kind, "at": which}


def evaluation(pictures: int, rows: int) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    hashes = draw.integers(0, 1 << 63, pictures * (1 + len(windows())), dtype=np.uint64)
    before, started = resident(), time.process_time()
    table = HashTable(hashes, 10)
    built, used = time.process_time() - started, resident() - before
    queries = draw.integers(0, 1 << 63, rows, dtype=np.uint64)
    started = time.process_time()
    found = table.near(queries)
    seconds = time.process_time() - started
    return {
        "pictures": pictures, "hashes": len(hashes), "table_mb": round(used / 1e6), "build_s": round(built, 1), "ms_per_query": round(1000 * seconds / rows, 3),
        "near_per_query": round(len(found) / rows, 3), "compared_one_by_one": table.brute,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--evaluation", type=int, nargs="*", default=[100_000, 1_000_000])
    options = parser.parse_args()
    report: dict[str, Any] = {"decontaminate": [alone(evaluation, pictures, 1000) for pictures in options.evaluation]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"known{SUFFIX}"
        report["known_index"], report["known_dup"] = alone(known_index, options.known, path), alone(known, options.known, options.rows, path)
    print(json.dumps(report, indent=1))


def alone(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """In a process of its own, whose memory holds nothing else; with its peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(with_peak, measure, *given).result()


def with_peak(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    return {**measure(*given), "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


if __name__ == "__main__":
    main()
