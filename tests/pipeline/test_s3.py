"""A run directory in object storage, on a real S3 server: equal results, few requests, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline import object_store, registry
from pipeline.cli import app
from pipeline.errors import Fatal, RecipeError
from pipeline.explain import explain
from pipeline.plan import make_plan
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, open_run, run
from pipeline.status import status_of
from stages.shards.verify import verify_dataset
from tests.pipeline.helpers import make_recipe
from tests.pipeline.s3_server import S3Server

LOCAL = RunOptions(executor="local")
STAGES = [{"score": {"min": 300}}, {"first_url": {}}]


def test_a_run_in_object_storage_has_the_state_of_one_on_a_disk(tmp_path: Path, s3: S3Server) -> None:
    near = run(make_recipe(STAGES), tmp_path / "run", LOCAL)
    far = run(make_recipe(STAGES), s3.place("run"), LOCAL)
    assert far.view.state_digest() == near.view.state_digest()
    local = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(s3.files("run")) == local - {"lock.turn"} and "lock" not in local
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


PICTURES = Path(__file__).parents[1] / "stages" / "shards" / "toys.py"


def pictures(**job: Any) -> Recipe:
    """Real small images through write_shards: 60 rows in parts of 20, two parts a group."""
    registry.import_file(str(PICTURES))
    return build_recipe(
        {
            "name": "pictures",
            "input": {"kind": "pictures", "rows": 60, "rows_per_part": 20},
            "stages": [{"store_images": {}}, {"rate": {"min": job.pop("min", 0.1)}}],
            "jobs": [{"write_shards": {"max_samples": 12, "parts_per_group": 2, **job}}],
        }
    )


def dataset_on_disk(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root / "dataset").as_posix(): path.read_bytes() for path in (root / "dataset").rglob("*") if path.is_file()}


def test_the_dataset_in_object_storage_is_the_one_on_a_disk_byte_for_byte(tmp_path: Path, s3: S3Server) -> None:
    run(pictures(), tmp_path / "run", LOCAL)
    run(pictures(), s3.place("run"), LOCAL)
    wanted = dataset_on_disk(tmp_path / "run")
    assert "manifest.json" in wanted and sum(name.endswith(".tar") for name in wanted) >= 4
    assert s3.files("run/dataset") == wanted
    assert verify_dataset(s3.place("run/dataset")) == []
    # other cuts move shards to other numbers: copies by the server, and only the manifest's files stay
    run(pictures(min=0.6), s3.place("run"), LOCAL)
    run(pictures(min=0.6), tmp_path / "run", LOCAL)
    assert s3.files("run/dataset") == dataset_on_disk(tmp_path / "run")
    assert verify_dataset(s3.place("run/dataset")) == []


def test_shards_copy_images_in_few_requests(s3: S3Server) -> None:
    run(pictures(), s3.place("run"), RunOptions(executor="local", jobs=False))
    s3.requests.clear()
    result = run(pictures(), s3.place("run"), LOCAL)
    tars = [r for r in s3.requests if r.method == "GET" and "/blobs/" in r.path]
    shards = result.jobs["write_shards"]["shards"]
    assert len(tars) <= shards + 2, "one request per shard and stored tar that it takes images from"
    assert not [r for r in s3.requests if r.method == "GET" and r.path.endswith(".tar") and "/dataset/" in r.path], "no shard is fetched again"


def test_reading_commands_know_object_storage(s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(pictures(), s3.place("run"), LOCAL)
    found = status_of(s3.place("run"))
    assert (found["state"], found["dataset"]) == ("finished", s3.place("run/dataset"))
    key = result.view.read(result.view.view(0), ["sample_id"])["sample_id"][0].as_py().hex()
    (life,) = explain(s3.place("run"), key)
    assert life["became"].startswith(("kept", "dropped"))
    assert not make_plan(pictures(), s3.place("run")).to_dict().get("new")
    code = typer.main.get_command(app)(["verify", s3.place("run")], standalone_mode=False)
    assert code == 0 and "no problems found" in capsys.readouterr().out


def test_what_is_missing_is_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"s3://nowhere-here/run/run.json: there is no bucket 'nowhere-here' at http://127.0.0.1"):
        run(make_recipe(STAGES), "s3://nowhere-here/run", LOCAL)
    with pytest.raises(RecipeError, match="s3://bucket: name a folder in the bucket"):
        run(make_recipe(STAGES), "s3://bucket", LOCAL)
    with pytest.raises(RecipeError, match="gs://bucket/run: a run directory is a local folder or s3://BUCKET/FOLDER"):
        run(make_recipe(STAGES), "gs://bucket/run", LOCAL)
    with pytest.raises(RecipeError, match="s3://bucket/none: no run here"):
        open_run(s3.place("none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0})
    object_store._store.cache_clear()
    with pytest.raises(Fatal, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        run(make_recipe(STAGES), s3.place("run"), LOCAL)
    object_store._store.cache_clear()
