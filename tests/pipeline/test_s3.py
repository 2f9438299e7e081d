"""A run directory in object storage, on a real S3 server: equal results, few requests, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.run import RunOptions, open_run, run
from tests.pipeline.helpers import make_recipe
from tests.pipeline.s3_server import S3Server

LOCAL = RunOptions(executor="local")
STAGES = [{"score": {"min": 300}}, {"first_url": {}}]


def test_a_run_in_object_storage_has_the_state_of_one_on_a_disk(tmp_path: Path, s3: S3Server) -> None:
    near = run(make_recipe(STAGES), tmp_path / "run", LOCAL)
    far = run(make_recipe(STAGES), s3.place("run"), LOCAL)
    assert far.view.state_digest() == near.view.state_digest()
    local = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(s3.files("run")) == local and "lock" not in local
    assert open_run(s3.place("run")).counts() == near.view.counts()


def test_a_second_run_reads_footers_only_and_writes_nothing(s3: S3Server) -> None:
    run(make_recipe(STAGES, rows=600, rows_per_part=100), s3.place("run"), LOCAL)
    s3.requests.clear()
    again = run(make_recipe(STAGES, rows=600, rows_per_part=100), s3.place("run"), LOCAL)
    assert again.tally.parts_run == 0
    written = [r.name for r in s3.requests if r.method == "PUT"]
    assert set(written) == {"run/lock", "run/run.json"}
    assert not [r for r in s3.requests if r.name.endswith(".parquet") and not r.range], "a footer is read by its range"
    committed = 6 * (3 * 2 - 1 + 1)  # values of source and score, verdicts of all three, resolved of first_url
    assert s3.count("GET", ".parquet") <= 3 * committed


def test_stored_images_are_read_in_few_requests(tmp_path: Path, s3: S3Server) -> None:
    book = tmp_path / "book.json"
    book.write_text(json.dumps({"failing": {}, "version": 0}))
    stages = [{"fetch": {"book": str(book)}}, {"digest_image": {}}]
    s3.requests.clear()
    far = run(make_recipe(stages, rows=300, rows_per_part=100), s3.place("run"), LOCAL)
    assert far.tally.computed["digest_image"] == 297
    tars = [r for r in s3.requests if r.method == "GET" and r.name.endswith(".tar")]
    assert len(tars) == 3, "one part, one tar, seven batches: one request"
    assert all(r.range for r in tars)
    near = run(make_recipe(stages, rows=300, rows_per_part=100), tmp_path / "run", LOCAL)
    assert far.view.state_digest() == near.view.state_digest()
