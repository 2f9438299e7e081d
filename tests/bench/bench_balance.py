"""balance, levels and clusters out of core: seconds, rows a second, peak memory, spilled bytes of each rule, on made rows.

    .venv/bin/python tests/bench/bench_balance.py [--rows 1000000] [--entries 500000] [--only metadata,caps]

Texts are of 4 to 16 words drawn by Zipf's law from 200,000; of the entries a fifth are the commonest words and the others pairs of neighbours. Clusters are
100,000 of Zipf sizes, tags 80. Each rule runs in a process of its own, in a DuckDB file with the 2 GB that a run gives it; making the rows is not counted.
Unless `--once`, each runs again with another cut into parts, which must give the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.resolve import MEMORY_LIMIT
from pipeline.stage import Evidence
from stages.balance import Balance
from stages.levels import Levels

WORDS = 200_000
CHUNK = 100_000


def text_words(draw: np.random.Generator, count: int) -> list[str]:
    lengths = draw.integers(4, 17, count)
    words = np.minimum((WORDS ** draw.random(int(lengths.sum()))).astype(np.int64), WORDS - 1)  # log-uniform ranks: Zipf's law with exponent 1
    names = np.char.add("w", words.astype(str)).tolist()
    ends = np.cumsum(lengths)
    return [" ".join(names[end - n : end]) for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]


def fill(con: duckdb.DuckDBPyConnection, rows: int, per_part: int) -> None:
    """Table rows: the same for any `per_part` but for part and row."""
    for first in range(0, rows, CHUNK):
        draw, count = np.random.default_rng(first), min(CHUNK, rows - first)
        places = np.arange(first, first + count)
        texts = [[{"kind": "alt_text", "text": text, "source": "", "model": "", "prompt": "", "clip_score": None}] for text in text_words(draw, count)]
        ids = [hashlib.md5(str(place).encode()).digest() for place in places.tolist()]
        kind = "kind text source model prompt".split()
        struct = pa.struct([*((name, pa.string()) for name in kind), ("clip_score", pa.float32())])
        table = pa.table(
            {
                "part": (places // per_part).astype(np.int32), "row": (places % per_part).astype(np.int32), "sample_id": pa.array(ids, pa.binary()),
                "texts": pa.array(texts, pa.list_(struct)), "cluster": (100_000 ** draw.random(count)).astype(np.int32),
                "clip_score": draw.normal(0.28, 0.05, count).astype(np.float32),
                "tags": pa.array([[f"t{a}", f"t{b}"] for a, b in (80 ** draw.random((count, 2))).astype(int).tolist()]),
            }
        )  # fmt: skip
        con.register("incoming", table)
        con.execute("CREATE TABLE rows AS SELECT * FROM incoming" if first == 0 else "INSERT INTO rows SELECT * FROM incoming")
        con.unregister("incoming")


def entries(path: Path, count: int) -> None:
    """The commonest words, and pairs of words as they stand side by side in further texts."""
    words = [f"w{nth}" for nth in range(1, count // 5 + 1)]
    draw, pairs = np.random.default_rng(7), dict[str, None]()
    while len(pairs) < count - len(words):
        for text in text_words(draw, 20_000):
            split = text.split(" ")
            pairs.update(dict.fromkeys(f"{a} {b}" for a, b in zip(split, split[1:], strict=False)))
    path.write_text(json.dumps(words + list(pairs)[: count - len(words)]))


def rules(file: str, rows: int) -> dict[str, Any]:
    return {
        "metadata": Balance(Balance.Params(metadata={"file": file, "size": rows // 4})),
        "caps": Balance(Balance.Params(caps=[{"by": "cluster", "max": 35}])),
        "expression": Balance(Balance.Params(caps=[{"by": "cluster % 1000", "max": 200}])),
        "reduce": Balance(Balance.Params(reduce={})),
        "quota": Balance(Balance.Params(quota={"max": {f"t{nth}": rows // 200 for nth in range(1, 11)}})),
        "levels": Levels(Levels.Params()),
    }


def one(name: str, file: str, rows: int, per_part: int, out: Any) -> None:
    """Run one rule; puts (seconds, processor seconds, rows kept, peak bytes, bytes of DuckDB's files at the end, digest of which rows stay)."""
    with tempfile.TemporaryDirectory(prefix="bench-balance-") as scratch:
        with duckdb.connect(f"{scratch}/evidence.duckdb") as con:
            con.execute(f"SET memory_limit='{MEMORY_LIMIT}'; SET temp_directory='{scratch}'; SET preserve_insertion_order=false; SET enable_progress_bar=false")
            fill(con, rows, per_part)
            began, worked = time.monotonic(), time.process_time()
            rules(file, rows)[name].resolve(Evidence(con, rows, rows)).create("answer")
            seconds, worked = time.monotonic() - began, time.process_time() - worked
            column = "level" if name == "levels" else "balance_reason IS NULL"
            told = f'SELECT part * {per_part}::BIGINT + "row" AS place, {column} AS told FROM answer'
            [(kept, digest)] = con.execute(f"SELECT count(*) FILTER (WHERE told), bit_xor(hash(place, told)) FROM ({told})").fetchall()
            size = sum(path.stat().st_size for path in Path(scratch).rglob("*"))
    out.put((seconds, worked, kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, size, digest))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--once", action="store_true", help="do not run again with another cut into parts")
    parser.add_argument("--only", default="metadata,caps,expression,reduce,quota,levels")
    options = parser.parse_args()
    context, good = multiprocessing.get_context("spawn"), True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metadata.json"
        entries(file, options.entries)
        for name in options.only.split(","):
            found = []
            for per_part in (10_000, *([] if options.once else [77_777])):
                out = context.Queue()
                process = context.Process(target=one, args=(name, str(file), options.rows, per_part, out))
                process.start()
                found.append(out.get())
                process.join()
            seconds, worked, kept, peak, size, digest = found[0]
            good &= all(other[5] == digest for other in found)
            told = {"rule": name, "rows": options.rows, "kept": kept, "seconds": round(seconds, 1), "rows_per_s": round(options.rows / seconds)}
            told |= {"processor_seconds": round(worked, 2), "peak_gib": round(peak / 2**30, 2), "files_gb": round(size / 1e9, 2)}
            print(json.dumps(told if options.once else told | {"same_for_other_parts": digest == found[1][5]}), flush=True)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
