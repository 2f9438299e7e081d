"""whatif on a run of many rows: three score cuts, the near_dup distance, a cap per cluster and a quota per tag changed together.

The run directory is made directly: random values of real stages (download, image_hash, clip_score, mllm_score; no image is stored) are committed part by part
as a run would commit them, then a real run makes the resolves and verdicts. One row in ten has a hash a few bits off another row's, 3 % have
another row's bytes. Prints one JSON line: seconds to build, seconds and peak memory of the first call of `pairmill whatif --json` and of further ones, each in
a process of its own. Further calls are warm: they find the files that the first one left in cache/whatif, in the operating system's page cache. --check also
makes a real run of the changed recipe in hard links and compares each row's fate.
Run: python tests/bench/bench_whatif.py [--rows 1000000] [--rows-per-part 10000] [--keep FOLDER] [--build-only] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chain import Chain, InputFacts, Node
from pipeline.digests import _mix
from pipeline.environment import Environment, code_version
from pipeline.part import StepResult, commit_values, judge_part
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, run
from pipeline.stage import Context, Vector
from pipeline.store import VALUES, VERDICTS, Store
from pipeline.view import PartView
from schemas.outcome import Outcome
from schemas.record import PartRecord, RunRecord

ROOT = Path(__file__).resolve().parents[2]
WORDS = np.array("red blue old new small large wooden street house car dog cat garden table river mountain portrait view summer".split())
FACTS = {"similarity": pa.float32(), "n_words": pa.int32(), "cluster": pa.int32(), "tag": pa.string()}


def sets_of(rows: int) -> list[str]:
    """The changes. Of the rows of a cluster or tag that reach `balance`, about 160 and 32,000 of 10 million, the cap and the quotas let a part stay."""
    cap, quota = max(1, rows // 100_000), max(1, rows * 3 // 10_000)
    return [
        "clip_score.min=0.25", "mllm_score.thresholds={semantic_understanding: 55}", "select.where=similarity >= 0.15 and n_words > 3",
        "dedup.max_distance=2", f"balance.caps=[{{by: cluster, max: {cap}}}]", f"balance.quota={{by: tag, max: {{tag1: {quota}, tag2: {quota}}}}}",
    ]  # fmt: skip


def recipe_of(rows_per_part: int) -> Recipe:
    stages: list[Any] = [
        "download", {"image_hash": {"pdq": False}}, {"clip_score": {"min": 0.2}},
        {"mllm_score": {"model": "mllm", "thresholds": {"semantic_understanding": 40}}},
        {"near_dup": {"by": "phash", "search_distance": 4}}, {"dedup": {"max_distance": 4}}, {"balance": {"caps": [{"by": "cluster", "max": 500}]}},
        {"select": {"where": "similarity >= 0.1"}},
    ]  # fmt: skip
    models = {"clip": {"kind": "open_clip", "name": "ViT-B-32", "weights": "laion2b_s34b_b79k"}, "mllm": {"kind": "fake"}}
    given = {"kind": "url_table", "table": "made.parquet", "rows_per_part": rows_per_part}
    return build_recipe({"name": "whatif", "input": given, "models": models, "stages": stages})


def numbers(rows: np.ndarray, salt: int) -> np.ndarray:
    """A random uint64 of each row."""
    return _mix(rows.astype(np.uint64) + np.uint64(salt << 40))


def hashes(rows: np.ndarray, total: int) -> np.ndarray:
    """uint64 [N]: every tenth row's is 1 to 3 bits off that of another."""
    copy = rows % 10 == 9
    base = np.where(copy, (numbers(rows, 1) % np.uint64(total)).astype(np.int64) // 10 * 10, rows)
    found = numbers(base, 2)
    for nth in range(3):
        found ^= np.where(copy, np.uint64(1) << (numbers(rows, 3 + nth) % np.uint64(64)), np.uint64(0))
    return found


def wide(values: np.ndarray, width: int) -> pa.Array:
    """Bytes of `width` from each of uint64 [N]."""
    words = np.stack([numbers(values, 50 + nth) for nth in range(width // 8)], axis=1)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(words.tobytes())])


def uniform(rows: np.ndarray, salt: int) -> np.ndarray:
    return (numbers(rows, salt) >> np.uint64(11)).astype(np.float64) / 2**53


def values_of(rows: np.ndarray, total: int) -> dict[str, pa.Array]:
    """The columns that matter, by name; all others are null."""
    words = WORDS[(numbers(rows, 20)[:, None] >> np.arange(0, 48, 8, dtype=np.uint64)).astype(np.int64) % len(WORDS)]
    twin = np.where(rows % 33 == 32, rows // 66, rows)
    side = (200 + numbers(rows, 7) % np.uint64(800)).astype(np.int32)
    return {
        "sample_id": wide(rows, 16), "url": pa.array([f"https://host{row % 9973}.example/{row}.jpg" for row in rows.tolist()]),
        "alt_text": pa.array([" ".join(some) for some in words.tolist()]), "alt_text_cut": pa.array(np.zeros(len(rows), bool)),
        "similarity": pa.array(uniform(rows, 8).astype(np.float32)), "n_words": pa.array((numbers(rows, 9) % np.uint64(20)).astype(np.int32)),
        "cluster": pa.array((numbers(rows, 10) % np.uint64(10_000)).astype(np.int32)),
        "tag": pa.array([f"tag{n}" for n in (numbers(rows, 11) % np.uint64(50)).tolist()]),
        "raw_sha256": wide(twin, 32), "image_sha256": wide(twin, 32), "width": pa.array(side), "height": pa.array(side // 2),
        "original_width": pa.array(side), "original_height": pa.array(side // 2),
        "phash": pa.array(hashes(rows, total).view("V8").tolist(), pa.binary()), "phash_quality": pa.array(np.full(len(rows), 80, np.int16)),
        "phash_turned": pa.array([b""] * len(rows), pa.binary()), "clip_score": pa.array(np.round(uniform(rows, 12) * 0.4, 4).astype(np.float32)),
        "semantic_understanding": pa.array(np.floor(uniform(rows, 13) * 100).astype(np.float32)),
    }  # fmt: skip


def build_part(out: str, part: int, rows_per_part: int, total: int) -> int:
    """Values of all stages and verdicts up to the first resolve, committed as a run commits them."""
    chain, store = Chain(recipe_of(rows_per_part), InputFacts("made", FACTS)), Store(out)
    rows = np.arange(part * rows_per_part, min(total, (part + 1) * rows_per_part))
    last = next(node.index for node in chain.nodes if node.has_resolve) - 1
    if store.path(VERDICTS, chain.nodes[last].name, part).exists():  # made by a call that was stopped
        return len(rows)
    view, env = PartView(chain, store, part, len(rows)), Environment(chain, store)
    made = values_of(rows, total)
    for node in chain.nodes:
        if node.has_resolve:
            break
        columns = {
            "outcome": pa.array(np.full(len(rows), int(Outcome.VALUE), np.int8)), "failure": pa.nulls(len(rows), pa.string()),
            "failure_detail": pa.nulls(len(rows), pa.string()), **{name: column_of(made, name, kind, len(rows)) for name, kind in node.writes.items()},
        }  # fmt: skip
        if node.index == 0:
            commit_source(chain, store, view, {**columns, "input_digest": pa.array(np.zeros(len(rows), np.uint64))})
            continue
        result = StepResult(node.name, part, computed=len(rows), seconds=1.0)
        commit_values(node, view, env, {**columns, "input_digest": pa.array(view.input_digests(node))}, result, Context(node.name, part), {})
        judge_part(node, view, env, result)
    return len(rows)


def column_of(made: dict[str, pa.Array], name: str, kind: Any, rows: int) -> pa.Array:
    if isinstance(kind, Vector):
        return pa.nulls(rows, pa.binary(0))
    return made[name].cast(kind) if name in made else pa.nulls(rows, kind)


def commit_source(chain: Chain, store: Store, view: PartView, columns: dict[str, pa.Array]) -> None:
    node: Node = chain.nodes[0]
    view.put_values(node, columns)
    record = PartRecord(VALUES, node.name, view.part, view.rows, node.compute_fingerprint, digest=view.values_digest(node), counts={"value": view.rows})
    store.commit(pa.table(columns), record)
    verdict = view.before(node)
    judged = PartRecord(VERDICTS, node.name, view.part, view.rows, node.compute_fingerprint, "source", verdict.digest(), record.digest)
    judged.counts = {"kept": view.rows}
    store.commit(verdict.to_table(), judged)
    view.put_record(node, record)
    view.put_record(node, judged)
    view.put_verdict(0, verdict)


def build(out: Path, rows: int, rows_per_part: int) -> dict[str, float]:
    """Seconds of the values and of the real run behind them."""
    recipe = recipe_of(rows_per_part)
    parts = [min(rows_per_part, rows - start) for start in range(0, rows, rows_per_part)]
    started = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        for part, future in enumerate([pool.submit(build_part, str(out), part, rows_per_part, rows) for part in range(len(parts))]):
            assert future.result() == parts[part]
    chain = Chain(recipe, InputFacts("made", FACTS))
    Store(out).write_run(RunRecord("made", code_version(), recipe.resolved, chain.nodes[0].compute_fingerprint, parts))
    values = time.perf_counter() - started
    result = run(recipe, out, RunOptions(executor="local", jobs=False, measures=False), facts=chain.facts)
    assert not sum(result.tally.computed.values()), "the values that were made are not valid"
    return {"values_s": round(values, 1), "resolves_s": round(time.perf_counter() - started - values, 1)}


def call(out: Path, sets: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The answer of one call of the command, and what it took: seconds, processor seconds of all its threads, peak GiB (mapped files counted)."""
    command = [sys.executable, "-m", "pipeline.cli", "whatif", str(out), "--json", *(word for one in sets for word in ("--set", one))]
    started = time.perf_counter()
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=compiled)
    told = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command failed with {status}")
    seconds, processor = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return json.loads(told), {"s": round(seconds, 2), "processor_s": round(processor, 2), "gib": round(usage.ru_maxrss / 2**20, 2)}


def check(out: Path, beside: Path, sets: list[str]) -> int:
    """Rows whose fate is told otherwise than a real run of the changed recipe in `beside` decides it."""
    from pipeline.changed import changed_run
    from pipeline.corpus import Corpus
    from pipeline.whatif import walk

    changed = changed_run(str(out), sets)
    found = walk(changed, Corpus(changed.run))
    subprocess.run(["cp", "-rl", str(out), str(beside)], check=True)
    result = run(changed.recipe, beside, RunOptions(executor="local", jobs=False, measures=False), facts=changed.chain.facts)
    wrong, start = 0, 0
    nodes, reasons = (pa.array(names, pa.string()) for names in ([node.name for node in changed.chain.nodes], found.names))
    for part, count in enumerate(result.view.parts):
        final = result.view.final(result.view.view(part))
        left, reason = (pc.index_in(final[name], value_set=names).fill_null(-1).to_numpy() for name, names in (("stage", nodes), ("reason", reasons)))
        own = slice(start, start + count)
        wrong += int(((left != found.then.left[own]) | (reason != found.then.reason[own])).sum())
        start += count
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-part", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="where the run directory is made, or lies already")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--warm", type=int, default=3, help="warm calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-whatif-") as temporary:
        out = (options.keep or Path(temporary)) / "run"
        told: dict[str, Any] = {"rows": options.rows}
        if not (out / "built").exists():
            told["build"] = build(out, options.rows, options.rows_per_part)
            (out / "built").touch()
        if not options.build_only:
            answer, first = call(out, sets_of(options.rows))
            told |= {"first": first, "files_made": answer["cache"]["files_made"], "warm": [call(out, sets_of(options.rows))[1] for _ in range(options.warm)]}
            told |= {"kept": answer["kept"], "undecided": answer["undecided"], "resolved_again": answer["resolved_again"], "stages": answer["stages"]}
        if options.check:
            told["wrong_fates"] = check(out, Path(temporary) / "beside", sets_of(options.rows))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
