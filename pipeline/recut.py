"""recut: the dataset of a changed recipe beside the old one, from what a run has measured: no image is decoded, no model asked.

The new run directory holds the old one's values and stored images under the same names: as hard links on a disk (both directories go on by
themselves: a part file is only ever replaced, a tar never changed), as copies where a link cannot be, by server-side copies in one bucket. `run.json` is
written last and commits them. Then the changed recipe runs there: it judges, resolves, and cuts shards by copying byte ranges of stored images.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.changed import Changed, changed_run
from pipeline.environment import code_version
from pipeline.errors import Fatal, RecipeError
from pipeline.files import commit_bytes, sync_folder, temporary_name, writing
from pipeline.forgotten import NAME as FORGOTTEN
from pipeline.forgotten import Forgotten
from pipeline.lock import RunLock, read_owner
from pipeline.plan import make_plan
from pipeline.storage import ObjectPath, Place, place_of
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store
from schemas.record import RunRecord

_THREADS = 8


def prepare_recut(out: str, sets: list[str], target: str) -> Changed:
    """Check what is asked, and bring the measurements into `target`; a call that was killed goes on when it is repeated.

    Raises RecipeError where the changed recipe needs measurements that the run lacks (with the number of rows and the command to give), where no
    job of it writes a dataset, or where `target` holds a run of another input; Fatal while a run works in `out`.
    """
    changed = changed_run(out, sets, lambda job: job.writes_dataset)
    source, beside = changed.run.root, place_of(target)
    if not changed.recipe.jobs:
        raise RecipeError(f"{out}: no job of this recipe writes a dataset; add write_shards to its jobs")
    if beside.resolve() == source.resolve() or beside.resolve().is_relative_to(source.resolve()):  # type: ignore[arg-type]
        raise RecipeError(f"--out {target}: the new dataset goes beside the old run, not into it; name another folder")
    if isinstance(source, ObjectPath) != isinstance(beside, ObjectPath) or getattr(source, "bucket", "") != getattr(beside, "bucket", ""):
        raise RecipeError(f"--out {target}: must lie where {out} lies (both on disks, or both in one bucket), so that no image travels through this machine")
    owner = read_owner(source / "lock")
    if owner is not None and owner.alive:
        raise Fatal(f"{out}: a run works here (process {owner.pid} on {owner.host}); wait for it or stop it")
    if Forgotten.of_run(source).open:
        raise Fatal(f"{out}: a removal of rows was interrupted here; end it first: pairmill forget {out}")
    if told := _missing(changed, out):
        raise RecipeError(f"{out}: this needs measurements that are not there: {told}; make them first, then give this command again:\n{changed.command(out)}")
    _bring(changed, beside)
    return changed


def _missing(changed: Changed, out: str) -> str:
    """Rows that a run of the changed recipe would measure, by stage; '' for none."""
    plan = make_plan(changed.recipe, out, facts=changed.chain.facts, outages=False)
    missing = [(stage.name, *stage.rows) for stage in plan.stages if stage.rows[1]]
    return ", ".join(f"{'' if low == high else 'up to '}{high:,} rows at {name}" for name, low, high in missing)


def _bring(changed: Changed, target: Place) -> None:
    """The list of forgotten rows, values, verdicts, resolved columns and stored images of the recipe's stages; `run.json` last."""
    record = changed.run.store.read_run()
    assert record is not None
    lock = RunLock(target)
    lock.acquire()
    try:
        store = Store(target, lock.token)
        there = store.read_run()
        if there is not None:
            if there.source_fingerprint != record.source_fingerprint:
                raise RecipeError(f"{target}: holds a run of another input; name another folder")
            _check_state(changed, target, record)
            return
        forgotten = changed.run.root / FORGOTTEN
        if forgotten.is_file():  # what was removed for good stays out of the new directory too
            commit_bytes(target / FORGOTTEN, forgotten.read_bytes())
        with ThreadPoolExecutor(_THREADS) as pool:
            folders = set(pool.map(lambda path: _bring_one(path, changed.run.root, target), _files(changed)))
        for folder in sorted(folders):
            sync_folder(folder)
        store.write_run(RunRecord(store.token, code_version(), changed.recipe.resolved, record.source_fingerprint, record.parts))
    finally:
        lock.release()


def _check_state(changed: Changed, target: Place, record: RunRecord) -> None:
    """Raises RecipeError where a directory that was made before lacks what the run has by now, or has rows that were forgotten since."""
    advice = "name a new folder (hard links take no space), or remove this one"
    keys = [(VALUES, "source", part) for part in range(len(record.parts))]
    rows = [{key: one.digest for key, one in store.records(keys).items()} for store in (changed.run.store, Store(target))]
    if rows[0] != rows[1]:
        raise RecipeError(f"{target}: rows were forgotten in {changed.run.root} or here, and not in both; `pairmill forget` them in both, or {advice}")
    if told := _missing(changed, str(target)):
        raise RecipeError(f"{target}: was made before {changed.run.root} had these measurements: {told}; {advice}")


def _files(changed: Changed) -> Iterator[Place]:
    for node in changed.chain.nodes:
        for kind in (VALUES, VERDICTS, RESOLVED):
            yield from (changed.run.root / kind / node.name).glob("part-*.parquet")
        if node.stage is not None and node.stage.writes_blobs:
            yield from changed.run.store.blobs(node.name).glob("*.tar")


def _bring_one(path: Place, source: Place, target: Place) -> Place:
    """One file under the same name below `target`; returns its folder there. A file that is there already is whole, but may be of an earlier state."""
    place = target / str(path)[len(str(source)) + 1 :]
    if isinstance(path, ObjectPath) and isinstance(place, ObjectPath):
        from pipeline import object_store

        object_store.copy(path.bucket, path.key, place.key)
        return place.parent
    assert isinstance(path, Path) and isinstance(place, Path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not _is_there(path, place):
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            _copy(path, place)
    return place.parent


def _is_there(path: Path, place: Path) -> bool:
    """Whether `place` is a link or a later copy of `path`: a part file is replaced as a whole, so that an older copy is of another state."""
    if not place.exists():
        return False
    return place.samefile(path) or (place.stat().st_size == path.stat().st_size and place.stat().st_mtime_ns > path.stat().st_mtime_ns)


def _copy(path: Path, place: Path) -> None:
    temporary = temporary_name(place)
    with writing(place):
        try:
            shutil.copyfile(path, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.rename(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
