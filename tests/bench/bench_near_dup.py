"""The search for near hashes: 64-bit hashes by the million, and 100,000 hashes beside the peers.

    bench_near_dup.py --rows 1000000 10000000                    # distance 4: seconds, CPU seconds and peak memory for each size, growth
    bench_near_dup.py --exact 100000 [--photos DIR]              # the same pairs as looking at all, both widths up to their search distances
    bench_near_dup.py --peers 100000 --peer-python PYTHON        # imagededup's brute force, faiss's binary multi-hash at equal recall

The hashes of --rows: random ones; 5 % of the rows are copies, up to 4 bits off, in groups of 2 to 50; 1 % (at most 100,000) are one equal hash; 0.1 % (at
most 10,000) are distinct hashes up to 4 bits off one another's centre. Each size runs in a process of its own. Every planted copy within the distance of its
original must be in the original's component. --peer-python has imagededup and faiss-cpu; what is missing there is left out and named.
imagededup builds its table anew for each query, so that 100 and 300 queries are asked and the line through both times extended to all hashes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stages.dups.components import components
from stages.dups.hamming import near_pairs
from stages.dups.pairs import as_words, brute_pairs, join
from stages.dups.parting import distinct_places
from stages.dups.search_plan import make_plan
from stages.images.decode import decode
from stages.images.hashes import hash_image

DISTANCE = 4


def flipped(draw: np.random.Generator, hashes: np.ndarray, most: int) -> np.ndarray:
    """Copies of uint64 hashes with 1 to `most` bits changed."""
    out, flips = hashes.copy(), draw.integers(1, most + 1, len(hashes))
    for nth in range(most):  # a bit drawn twice flips back: fewer bits off, never more
        out ^= np.where(flips > nth, np.uint64(1) << draw.integers(0, 64, len(hashes)).astype(np.uint64), np.uint64(0))
    return out


def planted(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hashes uint64 [rows], shuffled, and for each the row it is a copy of (its own where it is none)."""
    draw = np.random.default_rng(seed)
    hashes, original = draw.integers(0, 2**64, rows, dtype=np.uint64), np.arange(rows)
    equal, flat, copies = min(100_000, rows // 100), min(10_000, rows // 1000), rows // 20
    sizes = draw.integers(1, 50, copies)  # copies of each original: groups of 2 to 50
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), copies)) + 1]
    owner = np.repeat(np.arange(len(sizes)), sizes)[:copies]
    first = rows - equal - flat - copies
    hashes[first : first + copies], original[first : first + copies] = flipped(draw, hashes[owner], DISTANCE), owner
    hashes[rows - equal - flat : rows - flat] = hashes[rows - equal - flat]
    hashes[rows - flat :] = flipped(draw, np.full(flat, np.uint64(0xFFFF0000)), DISTANCE)
    order = draw.permutation(rows)
    place = np.empty(rows, np.int64)
    place[order] = np.arange(rows)
    return hashes[order], place[original[order]]


def one_size(rows: int, threads: int | None) -> dict[str, object]:
    """Equal hashes collapsed, the search, the components; checked against what was planted."""
    hashes, original = planted(rows)
    start, cpu = time.perf_counter(), time.process_time()
    unique, which = distinct_places(hashes)
    pairs = join(list(near_pairs(unique, DISTANCE, threads=threads)))
    label = components(len(unique), pairs.left, pairs.right)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    lost = int((label[which] != label[which[original]]).sum())
    plan = make_plan(len(unique), 64, DISTANCE)
    return {
        "rows": rows, "distinct": len(unique), "pairs": len(pairs), "lost": lost, "passes": len(plan.passes), "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2), "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }  # fmt: skip


def growth(sizes: list[int], threads: int | None) -> None:
    found = []
    for rows in sizes:
        command = [sys.executable, __file__, "--one", str(rows), *([] if threads is None else ["--threads", str(threads)])]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(found[-1], flush=True)
    for small, large in zip(found, found[1:], strict=False):
        fold = [large[name] / small[name] for name in ("seconds", "cpu_seconds")]
        print(f"{small['rows']} -> {large['rows']} rows: {fold[0]:.1f}-fold seconds, {fold[1]:.1f}-fold CPU seconds")


def real_and_mutated(rows: int, width: int, photos: Path | None, seed: int = 1) -> np.ndarray:
    """Distinct hashes uint8 [about rows, width]: of photos (where there are any) and random ones, and copies of both with 1 to width * 2 bits changed."""
    draw = np.random.default_rng(seed)
    paths = sorted(photos.glob("*.jpg"))[: rows // 50] if photos else []
    hashed = [hash_image(decode(path.read_bytes()), pdq=width == 32) for path in paths]
    real = np.frombuffer(b"".join((one.pdq or b"") if width == 32 else one.phash for one in hashed), np.uint8).reshape(-1, width)
    bases = np.concatenate([real, draw.integers(0, 256, (rows // 4, width), dtype=np.uint8)])
    copies = bases[draw.integers(0, len(bases), rows - len(bases))]
    bits = np.unpackbits(copies, axis=1)
    for row in bits:
        row[draw.choice(8 * width, draw.integers(1, 2 * width + 1), replace=False)] ^= 1
    return np.unique(np.concatenate([bases, np.packbits(bits, axis=1)]), axis=0)


def exact(rows: int, photos: Path | None) -> None:
    for width, most in ((8, (4, 8, 12)), (32, (31, 40))):
        hashes = real_and_mutated(rows, width, photos)
        start = time.process_time()
        wanted = join(list(brute_pairs(as_words(hashes), max(most))))
        brute = time.process_time() - start
        keys = wanted.left * len(hashes) + wanted.right
        for distance in most:
            start = time.process_time()
            found = join(list(near_pairs(hashes, distance)))
            seconds = time.process_time() - start
            got, want = found.left * len(hashes) + found.right, keys[wanted.distance <= distance]
            same = len(got) == len(want) and np.array_equal(np.sort(got), np.sort(want))
            passes = len(make_plan(len(hashes), 8 * width, distance).passes)
            print(f"{8 * width} bits, {len(hashes)} hashes, distance {distance}: {len(got)} pairs, {passes} passes, same as looking at all: {same}; "
                  f"CPU {seconds:.1f} s, all {brute:.1f} s", flush=True)  # fmt: skip
            if not same:
                raise SystemExit("the search missed pairs or made some up")


_PEER = r"""
import json, sys, time
import numpy as np
hashes, distance = np.load(sys.argv[1]), int(sys.argv[2])
found = {}
try:
    import faiss
    faiss.omp_set_num_threads(int(sys.argv[3]))
    bits = hashes.view(np.uint8).reshape(-1, 8)
    want = int(sys.argv[4])
    for tables, width in ((4, 16), (5, 12), (6, 10)):
        start = time.perf_counter()
        index = faiss.IndexBinaryMultiHash(64, tables, width)
        index.nflip = max(0, -(-(distance + 1) // tables) - 1) if tables * width <= 64 else 0
        index.add(bits)
        limits, _, labels = index.range_search(bits, distance + 1)
        seconds = time.perf_counter() - start
        owner = np.repeat(np.arange(len(bits)), np.diff(limits.astype(np.int64)))
        pairs = np.unique(np.minimum(owner, labels) * len(bits) + np.maximum(owner, labels))
        n = len(pairs) - int((pairs // len(bits) == pairs % len(bits)).sum())
        found["faiss multi-hash %d x %d bits, %d flipped" % (tables, width, index.nflip)] = {"seconds": seconds, "recall": n / want}
except ImportError as error:
    found["faiss"] = {"missing": str(error)}
try:
    from imagededup.handlers.search.retrieval import HashEval
    from imagededup.methods import PHash
    encoding = {str(at): "%016x" % value for at, value in enumerate(hashes.tolist())}
    seconds, shares = [], [min(len(encoding), 100), min(len(encoding), 300)]
    for count in shares:
        asked = dict(list(encoding.items())[:count])
        start = time.perf_counter()
        answer = HashEval(encoding, asked, PHash.hamming_distance, False, distance, "brute_force_cython", int(sys.argv[3])).retrieve_results(scores=False)
        seconds.append(time.perf_counter() - start)
    per_query = (seconds[1] - seconds[0]) / max(1, shares[1] - shares[0])
    of_these = np.load(sys.argv[5])[: shares[1]].sum()
    name = "imagededup brute_force_cython, %d queries took %.1f s and %d %.1f s, extended to all" % (shares[0], seconds[0], shares[1], seconds[1])
    recall = sum(len(others) for others in answer.values()) / max(1, of_these)
    found[name] = {"seconds": seconds[1] + per_query * (len(encoding) - shares[1]), "recall": recall}
except ImportError as error:
    found["imagededup"] = {"missing": str(error)}
print(json.dumps(found))
"""


def peers(rows: int, python: str, threads: int, scratch: Path) -> None:
    hashes = np.ascontiguousarray(real_and_mutated(rows, 8, None)).view(np.uint64).reshape(-1)
    path = scratch / "hashes.npy"
    np.save(path, hashes)
    for distance in (4, 8, 10):
        start = time.perf_counter()
        found = join(list(near_pairs(hashes, distance, threads=threads)))
        ours = time.perf_counter() - start
        np.save(scratch / "neighbours.npy", np.bincount(np.concatenate([found.left, found.right]), minlength=len(hashes)))
        print(f"distance {distance}, {len(hashes)} hashes, {len(found)} pairs: pairmill {ours:.2f} s", flush=True)
        command = [python, "-c", _PEER, str(path), str(distance), str(threads), str(len(found)), str(scratch / "neighbours.npy")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name, result in json.loads(told.strip().splitlines()[-1]).items():
            if "missing" in result:
                print(f"  {name}: missing ({result['missing']})", flush=True)
            else:
                print(f"  {name}: {result['seconds']:.2f} s, recall {result['recall']:.4f}, {result['seconds'] / ours:.1f} times ours", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", help="sizes to run, each in a process of its own")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--exact", type=int, help="hashes to compare with looking at all pairs")
    parser.add_argument("--peers", type=int, help="hashes to run beside the peers")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with imagededup and faiss-cpu")
    parser.add_argument("--photos", type=Path, help="folder of photos whose hashes are among those of --exact")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--scratch", type=Path, default=Path("."), help="folder for the peers' input")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_size(options.one, options.threads)))
    if options.rows:
        growth(options.rows, options.threads)
    if options.exact:
        exact(options.exact, options.photos)
    if options.peers:
        peers(options.peers, options.peer_python, options.threads or 2, options.scratch)


if __name__ == "__main__":
    main()
