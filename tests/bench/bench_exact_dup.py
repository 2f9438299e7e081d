"""exact_dup's resolve out of core: seconds and peak memory for each number of rows.

    bench_exact_dup.py --rows 1000000 10000000 [--scratch DIR]

Rows have the 32-byte digest of their image, one text, a score and a size, in DuckDB under the memory limit of a run; 5 % are copies of others in groups
of 3 to 51, and 1 % (at most 100,000) have one digest. Each size runs in a process of its own. `resolve` is the stage's query with its answer in DuckDB, `read`
the answer read back in the order of the parts (10,000 rows each), as the machine commits it; `lost` counts groups of which not exactly one row stayed.
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
from types import SimpleNamespace

import duckdb

from pipeline.resolve import MEMORY_LIMIT, _answers
from pipeline.stage import Evidence
from stages.exact_dup import ExactDup

PART = 10_000


def picture_of(rows: int) -> str:
    """SQL: what row i shows: picture i, but of each 1,000 rows the last 50 repeat one of the first 25, and the ten before them one and the same."""
    return f"""(CASE WHEN i % 1000 >= 950 THEN i // 1000 * 1000 + i % 1000 % (1 + i // 1000 % 25)
        WHEN i % 1000 >= 940 AND i // 100 < {min(100_000, rows // 100)} THEN 0 ELSE i END)"""


def fill(con: duckdb.DuckDBPyConnection, rows: int) -> None:
    """The table `rows`, with the digest of each row's picture."""
    con.execute(
        f"""
        CREATE TABLE rows AS
        SELECT (i // {PART})::INTEGER AS part, (i % {PART})::INTEGER AS row, unhex(md5(i::VARCHAR)) AS sample_id, unhex(sha256(picture::VARCHAR)) AS raw_sha256,
            ((i * 7919) % 1000 / 1000)::FLOAT AS clip_score, (200 + i % 800)::INTEGER AS width, 300::INTEGER AS height,
            [{{'kind': 'alt_text', 'text': 'text ' || i, 'source': '', 'model': '', 'prompt': '', 'clip_score': (i * 7919 % 1000 / 1000)::FLOAT}}] AS texts
        FROM (SELECT i, {picture_of(rows)} AS picture FROM range({rows}) t(i))
        """
    )


def one_size(rows: int, scratch: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="bench-exact-", dir=scratch) as folder, duckdb.connect(f"{folder}/evidence.duckdb") as con:
        con.execute(f"SET memory_limit='{MEMORY_LIMIT}'; SET temp_directory='{folder}'; SET preserve_insertion_order=false; SET enable_progress_bar=false")
        fill(con, rows)
        stage = ExactDup(ExactDup.Params())
        start, cpu = time.perf_counter(), time.process_time()
        columns = ", ".join(f'"{name}"' for name in ("part", "row", *stage.resolves))
        stage.resolve(Evidence(con, rows, rows)).select(columns).create("answer")
        resolved, cpu = time.perf_counter() - start, time.process_time() - cpu
        start, seen, views = time.perf_counter(), 0, [SimpleNamespace(part=part, rows=PART) for part in range(-(-rows // PART))]
        for answer in _answers(con, None, views):  # type: ignore[arg-type]
            seen += sum(table.num_rows for table in answer.values())
        read = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        # Rows that can have a duplicate, by the picture's number: grouping all rows by their digest again would need more memory than what is measured.
        [(groups, of_groups, lost)] = con.sql(
            f"""
            SELECT count(*), sum(dropped), count(*) FILTER (dropped <> members - 1) FROM (
                SELECT {picture_of(rows)} AS picture, count(*) AS members, count(dup_of) AS dropped
                FROM (SELECT part::BIGINT * {PART} + "row" AS i, dup_of FROM answer WHERE "row" % 1000 < 25 OR "row" % 1000 >= 940)
                GROUP BY picture HAVING members > 1)
            """
        ).fetchall()
        [(gone,)] = con.sql("SELECT count(dup_of) FROM answer").fetchall()
        if gone != of_groups:
            raise SystemExit(f"{gone - of_groups} rows without a duplicate were dropped")
    return {
        "rows": rows, "gone": gone, "groups": groups, "lost": lost, "answered": seen, "resolve_seconds": round(resolved, 1),
        "resolve_cpu_seconds": round(cpu, 1), "read_seconds": round(read, 1), "peak_gib": round(peak, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", help="sizes to run, each in a process of its own")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", default=str(Path(tempfile.gettempdir())), help="folder with room for the evidence and what spills")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_size(options.one, options.scratch)), flush=True)
    for rows in options.rows or ():
        subprocess.run([sys.executable, __file__, "--one", str(rows), "--scratch", options.scratch], check=True)


if __name__ == "__main__":
    main()
