"""A retry that dies between writing its new tar and committing, while the server's answers have changed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

from pipeline import part, registry
from pipeline.run import RunOptions, RunResult, open_run, run
from tests.pipeline.helpers import make_recipe

TOYS = Path(__file__).with_name("toys.py")
RETRY = RunOptions(executor="local", retry={"fetch": frozenset({"timeout"})})


def recipe(book: Path):
    return make_recipe([{"fetch": {"book": str(book)}}, {"score": {}}], rows=120, rows_per_part=40)


def _die_before_the_commit(book: Path, out: Path) -> None:
    registry.import_file(str(TOYS))
    part.commit_values = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    run(recipe(book), out, RETRY)


def bytes_are_their_own(view) -> int:
    """Check every committed row against the bytes it points at; returns how many there are."""
    checked = 0
    for number in range(len(view.parts)):
        table = view.read(view.view(number), ["tar", "offset", "size", "image_sha256"])
        for row in table.to_pylist():
            if row["tar"] is None:
                continue
            with open(view.blob_path(row["tar"]), "rb") as tar:
                tar.seek(row["offset"])
                assert hashlib.sha256(tar.read(row["size"])).digest() == row["image_sha256"]
            checked += 1
    return checked


def test_every_committed_row_still_points_at_its_own_bytes(tmp_path: Path) -> None:
    book, out = tmp_path / "book.json", tmp_path / "run"
    book.write_text(json.dumps({"failing": {f"text {i}": "timeout" for i in range(0, 120, 3)}, "version": 0}))
    first: RunResult = run(recipe(book), out, RunOptions(executor="local"))
    assert bytes_are_their_own(first.view) == 80  # of 120 rows 40 timed out, row 96 (bad at the source) among them
    tars = {path.name for path in (out / "blobs" / "fetch").iterdir()}

    book.write_text(json.dumps({"failing": {}, "version": 1}))
    child = multiprocessing.get_context("forkserver").Process(target=_die_before_the_commit, args=(book, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert {path.name for path in (out / "blobs" / "fetch").iterdir()} > tars, "the new tar was written before the kill"
    assert bytes_are_their_own(open_run(out)) == 80

    again = run(recipe(book), out, RETRY)
    assert bytes_are_their_own(again.view) == 119
    assert again.tally.computed["fetch"] == 39  # only the rows that had failed, the good ones kept their old bytes
