"""forget: takes rows out of a run directory for good: their values, vectors, images, answers of models, and what other rows took over from them.

Order: the list of what to forget is committed first (`forgotten.json`, open), with all that it takes to find the rows again. Then everything that was made
of the rows goes, then the rows of the input are blinded, last a run judges and resolves again and writes the dataset anew, and the list is closed with a
proof. Each step can be repeated: after a kill the same command, or `pairmill forget RUN` alone, goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus import cache_folder
from pipeline.cut import commit_part
from pipeline.environment import Environment
from pipeline.errors import RecipeError
from pipeline.files import remove_files, remove_temporaries
from pipeline.forgotten import Forgotten
from pipeline.gc import Collected, collect_unnamed
from pipeline.lock import RunLock
from pipeline.run import open_run
from pipeline.run_view import RunView
from pipeline.scrub import Removed, scrub_part, value_files
from pipeline.storage import Place, place_of
from pipeline.store import RESOLVED, VALUES, VERDICTS
from schemas.outcome import FailureCode

_HASHES = ("raw_sha256", "image_sha256")


def count_rows(out: str, wanted: Iterable[tuple[str, str]]) -> Removed:
    """Rows that `forget_rows` would remove; nothing is written."""
    run = open_run(out)
    forgotten = Forgotten.of_run(run.root)
    for kind, value in wanted:
        forgotten.add(kind, value)
    found = Removed()
    for part in range(len(run.parts)):
        gone, done = _rows_of(run, part, forgotten)
        found.rows += int((gone & ~done).sum())
        found.parts += bool((gone & ~done).any())
    return found


def forget_rows(out: str, wanted: Iterable[tuple[str, str]]) -> Removed:
    """Remove what was asked for ((kind, value): see `pipeline.forgotten`) and whatever an interrupted removal left, all but the dataset.

    Raises RecipeError where there is no run, Fatal while another works in it. `finish` closes the list.
    """
    root = place_of(out)
    run = open_run(out)
    lock = RunLock(root)
    lock.acquire()
    try:
        run.store.token = lock.token
        remove_temporaries(root)
        forgotten = Forgotten.of_run(root)
        for kind, value in wanted:
            forgotten.add(kind, value)
        if not forgotten:
            raise RecipeError(f"{out}: nothing to forget; name rows with --url, --domain, --hash, --id or --list")
        return _forget(run, forgotten)
    finally:
        lock.release()


def _forget(run: RunView, forgotten: Forgotten) -> Removed:
    # Any file of it, for a kill while it is published may have left it without its manifest.
    found = Removed(dataset=next(iter(run.dataset.rglob("*.*")), None) is not None)
    masks, names = {}, set()
    for part in range(len(run.parts)):
        gone, done = _rows_of(run, part, forgotten)
        if gone.any():
            masks[part] = gone
            found.rows += int((gone & ~done).sum())
            names |= _name_rows(run, part, gone & ~done, forgotten)
    found.parts = len(masks)
    if not found.rows and not forgotten.open:  # nothing here is of what was named: the list alone grows
        found.dataset = False
        forgotten.write(run.root, run.store.guard)
        return found
    forgotten.open = True
    forgotten.write(run.root, run.store.guard)
    for part in range(len(run.parts)):
        scrub_part(run, part, masks.get(part, np.zeros(run.parts[part], bool)), names, found)
    _remove_derived(run, found.touched)
    _blind(run, forgotten, masks)
    collect_unnamed(run, Collected())
    return found


def _rows_of(run: RunView, part: int, forgotten: Forgotten) -> tuple[np.ndarray, np.ndarray]:
    """(rows of a part that are to be forgotten, those of them that are blinded already): bool [N] each."""
    table = run.store.read(VALUES, "source", part, ["failure", "sample_id", "url"])
    if table is None:
        raise RecipeError(f"{run.store.path(VALUES, 'source', part)} is missing: run the recipe again first")
    done = np.array([code == FailureCode.FORGOTTEN for code in table["failure"].to_pylist()], bool)
    gone = done | forgotten.rows(table)
    if forgotten.has_hashes:
        for path in value_files(run, part):
            stored = run.store.read(VALUES, path.parent.name, part)
            columns = [stored[name].to_pylist() for name in _HASHES if stored is not None and name in stored.column_names]
            gone |= np.array([forgotten.refuses_bytes(*digests) for digests in zip(*columns, strict=True)], bool) if columns else False
    return gone, done


def _name_rows(run: RunView, part: int, rows: np.ndarray, forgotten: Forgotten) -> set[str]:
    """Put the rows' ids on the list, so that they are found again whatever is left of them; returns what other rows may hold of them: ids and URLs."""
    table = run.store.read(VALUES, "source", part, ["sample_id", "url"])
    assert table is not None
    chosen = table.filter(pa.array(rows))
    ids = [value.hex() for value in chosen["sample_id"].to_pylist()]
    for identifier in ids:
        forgotten.add("id", identifier)
    return {*ids, *filter(None, chosen["url"].to_pylist())}


def _remove_derived(run: RunView, touched: set[int]) -> None:
    """Remove what is made anew without a measurement, and answers of models on parts with forgotten rows."""
    root = run.root
    for job in run.chain.recipe.jobs:
        if job.name == "write_shards":  # its journal first: a half done renaming is finished before its files go
            made = root / "jobs" / job.instance
            importlib.import_module("stages.shards.layout").Layout(run.dataset, made, run.store.guard).recover()
    files: list[Place] = [path for kind in (VERDICTS, RESOLVED) for path in (root / kind).rglob("part-*.parquet") if path.parent.name != "source"]
    for part in touched:
        files += (root / "cache").rglob(f"part-{part:05d}.*")
    files += cache_folder(run).glob("*")
    files += [path for path in (root / "jobs").rglob("*") if path.name == "scan.json" or path.name.endswith((".tar", ".parquet", ".idx"))]
    files += [path for path in (root / "index").glob("*")]
    files += [root / name for name in ("report.html", "report-share.html")]
    run.store.guard()
    remove_files(files)


def _blind(run: RunView, forgotten: Forgotten, masks: dict[int, np.ndarray]) -> None:
    """Take everything out of the rows of the input but that there was one."""
    env = Environment(run.chain, run.store)
    for part, mask in masks.items():
        table = run.store.read(VALUES, "source", part)
        assert table is not None
        blinded = forgotten.blinded(table, mask)
        if blinded is not table:
            commit_part(env, part, blinded)


def finish(out: str, before: str, found: Removed) -> dict[str, Any]:
    """Close the list with a proof: when, how many rows, the blind ids under which they stand among the rejected, and the manifest before and after."""
    root = place_of(out)
    run = open_run(out)
    lock = RunLock(root)
    lock.acquire()
    try:
        forgotten = Forgotten.of_run(root)
        removed = []
        for part in range(len(run.parts)):
            table = run.store.read(VALUES, "source", part, ["failure", "sample_id"])
            assert table is not None
            pairs = zip(table["failure"].to_pylist(), table["sample_id"].to_pylist(), strict=True)
            removed += [identifier.hex() for code, identifier in pairs if code == FailureCode.FORGOTTEN]
        told = {one for proof in forgotten.proofs for one in proof["removed"]}
        new = sorted(one for one in removed if one not in told)
        proof = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rows": len(new), "removed": new, "images": found.images, "measured_again": found.others,
            "manifest_before": before, "manifest_after": manifest_digest(root),
        }  # fmt: skip
        forgotten.proofs.append(proof)
        forgotten.open = False
        run.store.token = lock.token
        forgotten.write(root, run.store.guard)
        return proof
    finally:
        lock.release()


def manifest_digest(root: Place) -> str:
    """SHA-256 of the dataset's manifest, which holds those of all its files; '' where there is none."""
    path = root / "dataset" / "manifest.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
