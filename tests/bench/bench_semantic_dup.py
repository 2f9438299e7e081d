"""The search for near embeddings: planted copies by the million, and beside an exhaustive range search of faiss.

    bench_semantic_dup.py --rows 200000 1000000     # recall of planted copies, seconds, peak memory, each size in a process of its own
    bench_semantic_dup.py --peers 200000            # the same rows with faiss's exhaustive range search on the same number of threads

Rows are float16 [N, 512]: half in 2,000 wide clusters (cosine of nearest neighbours near 0.7), half uniform on the sphere; 5 % of the rows are copies
of others at cosine 0.90 to 0.99. `recall` is that of the planted copies whose cosine, after rounding to float16, is at least 0.9, `recall_across` that of those
of them whose two rows belong to different clusters; with --peers also that of all pairs that faiss finds. Vectors are read 10,000 rows at a time, as in a run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np

from pipeline.stage import VectorBlock
from stages.vectors.blocks import blocks, unit
from stages.vectors.near import NearSearch

WIDTH, COSINE, PART = 512, 0.9, 10_000


def planted(rows: int, folder: Path, seed: int = 0) -> np.ndarray:
    """Writes parts of float16 vectors; returns for each row the row that it is a copy of (its own where it is none). One part is in memory at a time."""
    draw = np.random.default_rng(seed)
    centres = unit(draw.standard_normal((2000, WIDTH)).astype(np.float32))
    copies = rows // 20
    originals = rows - copies
    order = draw.permutation(rows)  # order[nth]: the place of the nth row made
    owner = draw.choice(originals, copies, replace=False)
    whole = np.memmap(folder / "all.f16", np.float16, "w+", shape=(rows, WIDTH))
    for start in range(0, originals, PART):
        count = min(PART, originals - start)
        noise = unit(draw.standard_normal((count, WIDTH)).astype(np.float32))
        clustered = np.arange(start, start + count) % 2 == 0
        # A member is 0.8 of its centre: two of one cluster have cosine 0.64 on average, the nearest two of a hundred or more about 0.7.
        noise[clustered] = unit(0.8 * centres[draw.integers(0, len(centres), int(clustered.sum()))] + 0.6 * noise[clustered])
        whole[order[start : start + count]] = noise
    for start in range(0, copies, PART):
        mine = owner[start : start + PART]
        base = unit(np.asarray(whole[order[mine]]))
        noise = draw.standard_normal(base.shape).astype(np.float32)
        noise = unit(noise - np.einsum("ij,ij->i", noise, base)[:, None] * base)
        cosine = draw.uniform(0.90, 0.99, len(mine)).astype(np.float32)[:, None]
        whole[order[originals + start : originals + start + len(mine)]] = cosine * base + np.sqrt(1 - cosine**2) * noise
    source = np.arange(rows)
    source[order[originals:]] = order[owner]
    return source


def reader(folder: Path, rows: int) -> Iterator[VectorBlock]:
    for part in range(-(-rows // PART)):
        count = min(PART, rows - part * PART)
        vectors = np.fromfile(folder / "all.f16", np.float16, count * WIDTH, offset=part * PART * WIDTH * 2).reshape(-1, WIDTH)
        yield VectorBlock(part, np.arange(count, dtype=np.int32), vectors)


def search(folder: Path, rows: int, probes: int) -> tuple[np.ndarray, NearSearch]:
    """Pairs found as one number each (least row * rows + other), sorted."""
    con = duckdb.connect(str(folder / "evidence.duckdb"))
    con.execute(f"SET memory_limit='2GB'; SET temp_directory='{folder}'; SET preserve_insertion_order=false")

    def draw(count: int) -> np.ndarray:
        wanted = np.sort(np.random.default_rng(7).choice(rows, min(rows, count), replace=False))
        return unit(np.concatenate([one.vectors[np.isin(one.part * PART + one.rows, wanted, assume_unique=True)] for one in reader(folder, rows)]))

    one = NearSearch(con, lambda: blocks(reader(folder, rows)), draw, COSINE, folder, probes)
    found = [np.empty(0, np.int64)]
    for pairs in one.pairs():
        left, right = ((side >> 32) * PART + (side & 0xFFFFFFFF) for side in (pairs.left, pairs.right))
        found.append(left * rows + right)
    return np.unique(np.concatenate(found)), one


def one_size(rows: int, probes: int, queries: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="bench-semantic-") as name:
        folder = Path(name)
        source = planted(rows, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        found, one = search(folder, rows, probes)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        copies = np.flatnonzero(source != np.arange(rows))
        whole = np.memmap(folder / "all.f16", np.float16, "r", shape=(rows, WIDTH))
        pieces = np.array_split(copies, 1 + len(copies) // PART)
        cosine = np.concatenate([np.einsum("ij,ij->i", unit(whole[some]), unit(whole[source[some]])) for some in pieces])
        near = copies[cosine >= COSINE]
        keys = np.minimum(near, source[near]) * rows + np.maximum(near, source[near])
        hit = np.isin(keys, found)
        across = one.labels[near] != one.labels[source[near]]
        report: dict[str, object] = {
            "rows": rows, "pairs": len(found), "planted": len(near), "recall": round(float(hit.mean()), 5), "across": int(across.sum()),
            "recall_across": round(float(hit[across].mean()), 5), "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
            "peak_gib": round(peak, 2), "peak_before_gib": round(before / 2**20, 2), "crowded": one.crowded, "probes": probes,
        }  # fmt: skip
        bands = {f"{low:.2f}": (cosine[cosine >= COSINE] >= low) & (cosine[cosine >= COSINE] < low + 0.03) for low in (0.90, 0.93, 0.96)}
        report["recall_by_cosine"] = {low: round(float(hit[band].mean()), 5) for low, band in bands.items()}
        if queries:
            report |= _exhaustive(unit(np.asarray(whole)), rows, found, seconds, min(queries, rows))
        return report


def _exhaustive(vectors: np.ndarray, rows: int, found: np.ndarray, ours: float, queries: int) -> dict[str, object]:
    """faiss's range search of the first `queries` rows in all of them; its time for all rows is that times rows / queries."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    start = time.perf_counter()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    pairs = []
    for at in range(0, queries, 10_000):
        limits, _, labels = index.range_search(vectors[at : min(at + 10_000, queries)], COSINE)
        owner = np.repeat(np.arange(at, min(at + 10_000, queries)), np.diff(limits.astype(np.int64)))
        pairs.append(np.minimum(owner, labels) * rows + np.maximum(owner, labels))
    seconds = (time.perf_counter() - start) * rows / queries
    wanted = np.unique(np.concatenate(pairs))
    wanted = wanted[wanted // rows != wanted % rows]
    recall = round(float(np.isin(wanted, found).mean()), 5)
    return {
        "exhaustive_queries": queries, "exhaustive_seconds": round(seconds, 1), "share_of_its_time": round(ours / seconds, 4), "all_pairs": len(wanted),
        "recall_of_all_pairs": recall,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", help="sizes to run, each in a process of its own")
    parser.add_argument("--peers", type=int, help="rows to run beside the exhaustive search")
    parser.add_argument("--queries", type=int, default=10**9, help="run the exhaustive search for the first so many rows only; its time is scaled")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one or options.peers:
        print(json.dumps(one_size(options.one or options.peers, options.probes, options.queries if options.peers else 0)), flush=True)
    for rows in options.rows or ():
        subprocess.run([sys.executable, __file__, "--one", str(rows), "--probes", str(options.probes)], check=True)


if __name__ == "__main__":
    main()
