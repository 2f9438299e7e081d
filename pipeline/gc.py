"""gc: gives back the space of stored images and vectors that no committed row names, and of images of rows that left.

Order of every step: what is new is committed, then the values that name it, then what nothing names any more is removed. So a
kill at any moment leaves at most files that the next gc removes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.blobs import BLOCK, REMOVED, BlobWriter, gone, padding
from pipeline.chain import Node, Ref
from pipeline.errors import Fatal
from pipeline.files import read_metadata, read_range, remove_files, remove_temporaries
from pipeline.lock import RunLock, read_owner
from pipeline.part import is_done
from pipeline.run import open_run
from pipeline.run_view import RunView
from pipeline.storage import Place, place_of
from pipeline.store import VALUES, Store, empty_values
from pipeline.view import flat
from schemas.outcome import Outcome, Status

_PART = re.compile(r"part-(\d{5,})")
_NAME_BYTES = 100  # of a tar header: the name stands first


@dataclass
class Collected:
    """What gc removed, or would remove. Bytes are those of files; `image_bytes` those of the removed images with their headers."""

    tars: int = 0
    tar_bytes: int = 0
    vectors: int = 0
    vector_bytes: int = 0
    temporaries: int = 0
    images: int = 0
    image_bytes: int = 0
    copied_bytes: int = 0
    unfinished_parts: int = 0
    forgotten: int = 0
    by_reason: Counter[tuple[str, str]] = field(default_factory=Counter)
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        plain = {name: value for name, value in self.__dict__.items() if name != "by_reason"}
        removed = [{"stage": stage, "reason": reason, "images": n} for (stage, reason), n in sorted(self.by_reason.items())]
        return {**plain, "freed_bytes": self.tar_bytes + self.vector_bytes - self.copied_bytes, "removed_by_reason": removed}


def collect(out: str | Place, dry_run: bool = False, dead_rows: bool = False, fetch_again: bool = False) -> Collected:
    """Remove tars and vectors that no committed row names, of all stages whose values lie in the run directory.

    dead_rows: also images of rows that are not in the dataset; their other values stay valid. fetch_again: make values whose image was
    so removed not valid, so that the next run fetches them. Raises RecipeError where there is no run, Fatal while another works in it.
    """
    root = place_of(out)
    run = open_run(str(out))
    if dry_run:
        owner = read_owner(root / "lock")
        if owner is not None and owner.alive:
            raise Fatal(f"{out}: a run works here (process {owner.pid} on {owner.host}); wait for it or stop it")
        return _collect(run, Collected(dry_run=True), dead_rows, fetch_again)
    lock = RunLock(root)
    lock.acquire()
    try:
        run.store.token = lock.token
        done = Collected(temporaries=remove_temporaries(root))
        return _collect(run, done, dead_rows, fetch_again)
    finally:
        lock.release()


def _collect(run: RunView, done: Collected, dead_rows: bool, fetch_again: bool) -> Collected:
    storing = [node for node in run.chain.nodes if node.stage is not None and node.stage.writes_blobs]
    spared: dict[str, set[str]] = {}  # tars that a dry run must count as removed though values still name them
    for part in range(len(run.parts)):
        for node in storing:
            if fetch_again:
                _forget(run, node, part, done)
            if dead_rows:
                spared.setdefault(node.name, set()).update(_strip(run, node, part, done))
    return collect_unnamed(run, done, spared)


def collect_unnamed(run: RunView, done: Collected, spared: dict[str, set[str]] | None = None) -> Collected:
    """Remove tars and vectors that no committed row names. spared: tars by stage that a dry run must count as removed."""
    for stage, paths in _by_stage(run.root / "blobs", "part-*.tar").items():
        named = _named_tars(run.store, stage) - ((spared or {}).get(stage, set()) if done.dry_run else set())
        for path in paths:
            if path.name not in named:
                done.tars, done.tar_bytes = done.tars + 1, done.tar_bytes + path.stat().st_size
                _remove(run.store, path, done)
    for stage, paths in _by_stage(run.root / VALUES, "part-*.vectors.parquet").items():
        named = {name for part in _parts(run.store, stage) if (record := run.store.record(VALUES, stage, part)) for name in record.side_files.values()}
        for path in paths:
            if path.name not in named:
                done.vectors, done.vector_bytes = done.vectors + 1, done.vector_bytes + path.stat().st_size
                _remove(run.store, path, done)
    return done


def _by_stage(root: Place, pattern: str) -> dict[str, list[Place]]:
    """Files under `<root>/<stage>/` by stage, of all stages that have some."""
    found: dict[str, list[Place]] = {}
    paths: list[Place] = list(root.rglob(pattern))
    for path in sorted(paths, key=str):
        found.setdefault(path.parent.name, []).append(path)
    return found


def _parts(store: Store, stage: str) -> list[int]:
    """Parts that have a values file."""
    names = (path.name.removesuffix(".parquet") for path in (store.root / VALUES / stage).glob("part-*.parquet"))
    return sorted(int(found[1]) for name in names if (found := _PART.fullmatch(name)))


def _remove(store: Store, path: Place, done: Collected) -> None:
    if not done.dry_run:
        store.guard()
        remove_files([path])


def _named_tars(store: Store, stage: str) -> set[str]:
    """Tars that rows with a value name, whatever recipe they were made by."""
    named: set[str] = set()
    for part in _parts(store, stage):
        if "tar" not in read_metadata(store.path(VALUES, stage, part)).schema.names:
            continue
        table = store.read(VALUES, stage, part, ["outcome", "tar"])
        assert table is not None
        has_value = table["outcome"].to_numpy() == Outcome.VALUE
        named.update(table["tar"].filter(pa.array(has_value)).drop_null().to_pylist())
    return named - {REMOVED}


def _strip(run: RunView, node: Node, part: int, done: Collected) -> set[str]:
    """Remove the images of one part's rows that are not in the dataset; returns the tars that thereby nobody needs.

    Images of other rows in the same tars are copied to new ones. A part whose verdicts are not up to date is left alone.
    """
    view = run.view(part)
    if not all(is_done(each, view) for each in run.chain.nodes[1:]):
        done.unfinished_parts += 1
        return set()
    table, record = run.store.read(VALUES, node.name, part), view.record(VALUES, node)
    assert table is not None and record is not None
    tars, offsets, sizes = (table[name].to_pylist() for name in ("tar", "offset", "size"))
    final = run.final(view)
    kept = final["status"].to_numpy() == Status.KEPT
    stored = np.array([tar is not None and tar != REMOVED for tar in tars], bool)
    dead = np.flatnonzero(stored & ~kept)
    if not len(dead):
        return set()
    touched = {tars[row] for row in dead}
    done.images += len(dead)
    done.image_bytes += sum(_member_bytes(sizes[row]) for row in dead)
    why = final.take(pa.array(dead))
    done.by_reason.update(zip(why["stage"].to_pylist(), why["reason"].to_pylist(), strict=True))
    alive = [row for row in np.flatnonzero(stored & kept).tolist() if tars[row] in touched]
    if done.dry_run:
        done.copied_bytes += sum(_member_bytes(sizes[row]) for row in alive) + (2 * BLOCK if alive else 0)
        return touched
    done.copied_bytes += copy_images(run, node, part, alive, tars, offsets, sizes)
    for row in dead:
        tars[row], offsets[row] = REMOVED, 0
    for name, values in (("tar", tars), ("offset", offsets)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    run.store.commit(table, record)  # location columns stand outside the digest: the record is as it was
    return touched


def _member_bytes(size: int) -> int:
    return BLOCK + size + len(padding(size))


def copy_images(run: RunView, node: Node, part: int, rows: list[int], tars: list[Any], offsets: list[Any], sizes: list[Any]) -> int:
    """Write the images of `rows` into new tars and put their new places into the lists; returns the bytes of these tars."""
    folder = run.store.blobs(node.name)
    writer = BlobWriter(folder, part, run.store.guard)
    try:
        for row in rows:
            member = _read(folder / tars[row], offsets[row] - BLOCK, BLOCK + sizes[row])
            key, _, extension = member[:_NAME_BYTES].rstrip(b"\0").decode("ascii").rpartition(".")
            tars[row], offsets[row], _ = writer.add(key, extension, member[BLOCK:])
        names = writer.finish()
    except BaseException:
        writer.abort()
        raise
    for row in rows:
        tars[row] = names[tars[row]]
    return sum((folder / name).stat().st_size for name in names.values())


def _read(path: Place, offset: int, size: int) -> bytes:
    try:
        data = read_range(path, offset, size)
    except FileNotFoundError:
        raise gone(path) from None
    if len(data) != size:
        raise Fatal(f"{path}: {len(data)} of {size} bytes at {offset}: the tar was cut after it was committed; nothing of it was removed")
    return data


def _forget(run: RunView, node: Node, part: int, done: Collected) -> None:
    """Values of rows whose image was removed become absent: where a run needs them, it fetches them again."""
    view = run.view(part)
    table, record = run.store.read(VALUES, node.name, part), view.record(VALUES, node)
    if table is None or record is None:
        return
    removed = np.array([tar == REMOVED for tar in table["tar"].to_pylist()], bool)
    done.forgotten += int(removed.sum())
    if done.dry_run or not removed.any():
        return
    nothing = empty_values(table.num_rows)
    columns = {}
    for name in table.column_names:
        column = flat(table[name])
        absent = nothing[name] if name in ("outcome", "input_digest") else pa.nulls(len(column), column.type)
        columns[name] = pc.if_else(pa.array(removed), absent, column)
    view.put_values(node, {**{name: view.column(Ref(node.index, name)) for name in node.vectors}, **columns})
    record.digest = view.values_digest(node)
    record.counts["value"] = int((columns["outcome"].to_numpy() == Outcome.VALUE).sum())
    run.store.commit(pa.table(columns), record)
