"""gc: what it removes, what stays possible, and what a kill in the middle leaves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.blobs import REMOVED
from pipeline.errors import Fatal
from pipeline.gc import collect
from pipeline.lock import RunLock
from pipeline.recipe import Recipe
from pipeline.run import RunOptions, run
from stages.shards.verify import verify_dataset

MakeRecipe = Callable[..., Recipe]
FileBytes = Callable[[Path], dict[str, bytes]]
LOCAL = RunOptions(executor="local")


def tars(root: Path) -> set[str]:
    return {path.name for path in root.glob("blobs/*/*.tar")}


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("blobs/*/*"))


def computed(result: Any) -> dict[str, int]:
    return {stage: n for stage, n in result.tally.computed.items() if n}


def test_files_that_no_row_names_are_removed_and_nothing_else(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(), tmp_path, LOCAL)
    before, named = file_bytes(tmp_path / "dataset"), tars(tmp_path)
    stray = tmp_path / "blobs/store_images/part-00001.0123456789abcdef.tar"  # committed before a kill, with no values that name it
    stray.write_bytes(b"\0" * 5000)
    vectors = tmp_path / "values/rate/part-00002.0123456789abcdef.vectors.parquet"
    vectors.write_bytes(b"\0" * 700)
    (tmp_path / "blobs/store_images/.tmp-1-part-00000-1.tar").write_bytes(b"\0" * 100)
    told = collect(tmp_path, dry_run=True).to_dict()
    assert stray.exists() and vectors.exists()
    done = collect(tmp_path).to_dict()
    assert (done["tars"], done["tar_bytes"], done["vectors"], done["vector_bytes"], done["freed_bytes"]) == (1, 5000, 1, 700, 5700)
    assert {**told, "dry_run": False, "temporaries": 1} == done
    assert tars(tmp_path) == named and not vectors.exists() and not list(tmp_path.rglob(".tmp-*"))
    assert not (tmp_path / "lock").exists()
    assert computed(run(make_recipe(min=0.0), tmp_path, LOCAL)) == {} and verify_dataset(tmp_path / "dataset") == []
    assert computed(run(make_recipe(), tmp_path, LOCAL)) == {} and file_bytes(tmp_path / "dataset") == before


def test_a_run_at_work_refuses_gc(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(rows=50), tmp_path, LOCAL)
    lock = RunLock(tmp_path)
    lock.acquire()
    try:
        for dry_run in (False, True):
            with pytest.raises(Fatal, match="run works here"):
                collect(tmp_path, dry_run=dry_run)
    finally:
        lock.release()


def test_images_of_rows_that_left_are_removed_and_the_run_stays_as_it_is(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(min=0.6), tmp_path, LOCAL)
    before, whole = file_bytes(tmp_path / "dataset"), size(tmp_path)
    told = collect(tmp_path, dry_run=True, dead_rows=True).to_dict()
    assert size(tmp_path) == whole
    done = collect(tmp_path, dead_rows=True).to_dict()
    rejected = [row for path in (tmp_path / "dataset/rejected").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    low = sum(row["reason"] == "low_clip" for row in rejected)
    assert done["removed_by_reason"] == told["removed_by_reason"] == [{"stage": "rate", "reason": "low_clip", "images": low}] and low > 50
    assert size(tmp_path) == whole - done["freed_bytes"] and done["freed_bytes"] == told["freed_bytes"] > whole / 4
    assert done["copied_bytes"] > 10_000  # images of rows that stay, in tars with some that left
    assert collect(tmp_path, dead_rows=True).to_dict()["freed_bytes"] == 0
    result = run(make_recipe(min=0.6), tmp_path, LOCAL)
    assert computed(result) == {} and result.jobs["write_shards"]["groups_written"] == 0 and file_bytes(tmp_path / "dataset") == before
    run(make_recipe(min=0.7), tmp_path, LOCAL)  # tightening needs no image that is gone
    run(make_recipe(min=0.7), tmp_path / "fresh", LOCAL)
    assert file_bytes(tmp_path / "dataset") == file_bytes(tmp_path / "fresh/dataset")


def test_loosening_says_what_to_do_and_then_fetches_again(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(min=0.6), tmp_path / "run", LOCAL)
    removed = collect(tmp_path / "run", dead_rows=True).images
    with pytest.raises(Fatal, match="`pairmill gc .* --fetch-again`"):
        run(make_recipe(min=0.3), tmp_path / "run", LOCAL)
    assert collect(tmp_path / "run", dry_run=True, fetch_again=True).forgotten == removed
    assert collect(tmp_path / "run", fetch_again=True).forgotten == removed
    result = run(make_recipe(min=0.3), tmp_path / "run", LOCAL)
    assert computed(result) == {"store_images": removed}  # equal bytes came back: what was measured from them is valid
    run(make_recipe(min=0.3), tmp_path / "fresh", LOCAL)
    assert file_bytes(tmp_path / "run/dataset") == file_bytes(tmp_path / "fresh/dataset")
    assert collect(tmp_path / "run").tars == 0


def test_parts_that_are_not_judged_to_the_end_keep_their_images(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(min=0.6), tmp_path, LOCAL)
    (tmp_path / "verdicts/rate/part-00002.parquet").unlink()
    done = collect(tmp_path, dead_rows=True)
    values = {part: pq.read_table(tmp_path / f"values/store_images/part-{part:05d}.parquet")["tar"].to_pylist() for part in (1, 2)}
    assert done.unfinished_parts == 1 and REMOVED in values[1] and REMOVED not in values[2]


def killed_gc(root: Path, nth: int) -> list[str] | None:
    """gc in a child that is killed before its nth rename or removal in the run; None when it was, else what it did."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen: list[str] = []

        def counted(original: Any) -> Any:
            def call(target: Any, *rest: Any, **options: Any) -> Any:
                if not os.fspath(target).endswith(("lock", ".json")) and "lock." not in os.fspath(target):
                    seen.append(os.fspath(target))
                    if len(seen) == nth:
                        os.kill(os.getpid(), signal.SIGKILL)
                return original(target, *rest, **options)

            return call

        os.rename, os.unlink = counted(os.rename), counted(os.unlink)  # type: ignore[assignment]
        collect(root, dead_rows=True)
        os.write(writer, json.dumps(seen).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    if os.WIFSIGNALED(status):
        return None
    assert status == 0
    return json.loads(told)


def test_a_kill_in_the_middle_loses_nothing(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    make = lambda: make_recipe(rows=75, min=0.6)  # noqa: E731
    run(make(), tmp_path / "whole", LOCAL)
    collect(tmp_path / "whole", dead_rows=True)
    due, dataset = tars(tmp_path / "whole"), file_bytes(tmp_path / "whole/dataset")
    nth = 0
    while True:
        nth += 1
        root = tmp_path / f"killed-{nth}"
        run(make(), root, LOCAL)
        seen = killed_gc(root, nth)
        result = run(make(), root, LOCAL)
        assert computed(result) == {} and file_bytes(root / "dataset") == dataset, nth
        collect(root, dead_rows=True)
        assert tars(root) == due, nth
        if seen is not None:
            break
    assert nth == 8 and sum(name.endswith(".tar") for name in seen) == 4  # one tar of a mixed part written anew, three removed
