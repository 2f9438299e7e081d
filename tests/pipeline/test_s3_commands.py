"""Every command that reads or mends a run, given the same run on a disk and in object storage: the same answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.doctor_store import object_store
from pipeline.forgotten import Forgotten
from pipeline.storage import ObjectPath, place_of
from tests.pipeline.s3_server import BUCKET, S3Server

PICTURES = str(Path(__file__).parents[1] / "stages" / "shards" / "toys.py")
IMPORT = ("--import", PICTURES)


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


def answer(*arguments: str, out: str) -> Any:
    """What a command says as JSON, with the run directory's place taken out."""
    result = pairmill(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.replace(out, "RUN"))


@pytest.fixture
def runs(tmp_path: Path, s3: S3Server) -> tuple[str, str]:
    """A finished run on a disk and the same in object storage."""
    recipe = {
        "name": "pictures",
        "input": {"kind": "pictures", "rows": 60, "rows_per_part": 20},
        "stages": ["store_images", {"rate": {"min": 0.3}}],
        "jobs": [{"write_shards": {"max_samples": 12, "parts_per_group": 2}}],
    }
    (tmp_path / "pictures.yaml").write_text(yaml.safe_dump(recipe))
    places = str(tmp_path / "run"), s3.place("run")
    for out in places:
        done = pairmill("run", str(tmp_path / "pictures.yaml"), *IMPORT, "--out", out, "--executor", "local")
        assert done.exit_code == 0, done.output
    return places


def test_a_changed_cut_is_told_and_written_alike(runs: tuple[str, str], tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cut = ("--set", "rate.min=0.45", *IMPORT)
    near, far = (answer("whatif", out, *cut, "--no-tokens", out=out) for out in runs)
    assert near.pop("cache")["folder"] == "RUN/cache/whatif" and far.pop("cache")["folder"].startswith(str(tmp_path / "cache"))
    assert near == far and near["kept"]["then"] < near["kept"]["now"]
    others = str(tmp_path / "other"), s3.place("other")
    kept = [answer("recut", out, *cut, "--out", other, out=other)["rows"]["kept"] for out, other in zip(runs, others, strict=True)]
    assert kept == [near["kept"]["then"]] * 2
    manifests = [(place_of(other) / "dataset" / "manifest.json").read_bytes() for other in others]
    assert manifests[0] == manifests[1]
    refused = pairmill("recut", runs[0], *cut, "--out", s3.place("third"))
    assert refused.exit_code == 2 and "both in one bucket" in refused.stderr


def test_reading_commands_answer_alike(runs: tuple[str, str]) -> None:
    sample = None
    for command in (("status",), ("failures", "--dropped"), ("verify",), ("retry", "--dry-run", "--reason", "all")):
        more = IMPORT if command[0] != "verify" else ()
        near, far = (answer(command[0], out, *command[1:], *more, out=out) for out in runs)
        for each in (near, far):
            each.pop("run_id", None)
            each.pop("finished", None)
        assert far == near, command
        if command[0] == "failures":
            sample = near
    assert sample is not None
    one = pq.read_table(io.BytesIO((Path(runs[0]) / "dataset/rejected/part-00000.parquet").read_bytes()))["key"][0].as_py()
    near, far = (answer("explain", out, one, *IMPORT, out=out) for out in runs)
    assert len(near) == 1 and json.dumps(far) == json.dumps(near)


def test_export_gives_equal_files(runs: tuple[str, str], tmp_path: Path) -> None:
    exported = []
    for place, out in enumerate(runs):
        to = tmp_path / f"export{place}"
        found = answer("export", out, "--out", str(to), out=str(to))
        assert found["rows"] > 20 and found["written"] == found["files"] == 1
        exported.append({str(file.relative_to(to)): file.read_bytes() for file in to.rglob("*") if file.is_file()})
        assert answer("export", out, "--out", str(to), out=str(to))["written"] == 0, "what is exported is not exported again"
    assert exported[0] == exported[1]


def test_export_writes_to_a_folder_only(runs: tuple[str, str]) -> None:
    refused = pairmill("export", runs[0], "--out", "s3://bucket/export")
    assert refused.exit_code == 2 and "a local folder" in refused.stderr, refused.output


def test_gc_removes_what_nothing_names(runs: tuple[str, str], s3: S3Server) -> None:
    stray = "blobs/store_images/part-00000.0123456789abcdef.tar"
    (Path(runs[0]) / stray).write_bytes(b"x" * 1000)
    s3.client.put_object(Bucket=BUCKET, Key=f"run/{stray}", Body=b"x" * 1000)
    before = s3.files("run")
    near, far = (answer("gc", out, "--dry-run", *IMPORT, out=out) for out in runs)
    assert far == near and far["tars"] == 1 and far["freed_bytes"] == 1000 and s3.files("run") == before
    near, far = (answer("gc", out, *IMPORT, out=out) for out in runs)
    assert far == near and set(before) - set(s3.files("run")) == {stray}


def test_gc_of_dead_rows_and_back(runs: tuple[str, str], s3: S3Server, tmp_path: Path) -> None:
    tars = {name for name in s3.files("run") if name.startswith("blobs/")}
    near, far = (answer("gc", out, "--dead-rows", *IMPORT, out=out) for out in runs)
    removed = far["images"]
    assert far == near and removed > 10 and far["freed_bytes"] > 0
    on_disk = {path.relative_to(runs[0]).as_posix(): path.read_bytes() for path in Path(runs[0]).rglob("blobs/*/*.tar")}
    assert {name: data for name, data in s3.files("run").items() if name.startswith("blobs/")} == on_disk and set(on_disk) != tars
    near, far = (answer("gc", out, "--fetch-again", *IMPORT, out=out) for out in runs)
    assert far == near and far["forgotten"] == removed
    again = pairmill("run", str(tmp_path / "pictures.yaml"), *IMPORT, "--out", runs[1], "--set", "rate.min=0", "--executor", "local")
    assert again.exit_code == 0 and pairmill("verify", runs[1]).exit_code == 0, again.output
    assert json.loads(s3.files("run")["dataset/manifest.json"])["counts"]["kept"] == 51


def test_forget_takes_rows_out_of_a_run_in_object_storage(runs: tuple[str, str], s3: S3Server) -> None:
    part = pq.read_table(Path(runs[0]) / "values/source/part-00001.parquet")["sample_id"].to_pylist()
    for out in runs:  # one salt, so that the two can be compared
        Forgotten(salt="00" * 16).write(place_of(out))
    near, far = (answer("forget", out, "--id", part[3].hex(), "--id", part[7].hex(), *IMPORT, out=out) for out in runs)
    near.pop("at"), far.pop("at")
    assert far == near and far["rows"] == 2 and far["manifest_after"] != far["manifest_before"]
    on_disk = {path.relative_to(runs[0]).as_posix(): path.read_bytes() for path in Path(runs[0]).rglob("*") if path.is_file()}
    stored = s3.files("run")
    for kind in ("dataset/", "blobs/"):
        assert {n: data for n, data in stored.items() if n.startswith(kind)} == {n: data for n, data in on_disk.items() if n.startswith(kind)}
    assert not [name for name, data in stored.items() if part[3] in data or part[3].hex().encode() in data]
    assert pairmill("verify", runs[1]).exit_code == 0


def test_a_report_of_a_run_in_object_storage(runs: tuple[str, str], s3: S3Server, tmp_path: Path) -> None:
    for out in runs:
        assert pairmill("report", out, *IMPORT).exit_code == 0
        here = pairmill("report", out, *IMPORT, "--out", str(tmp_path / "page.html"), "--share")
        assert here.exit_code == 0 and (tmp_path / "page.html").stat().st_size > 10_000, here.output
    pages = (Path(runs[0]) / "report.html").read_text(), s3.files("run")["report.html"].decode()
    near, far = (json.loads(page[page.index('id="data">') + 10 : page.rindex("</script>")]) for page in pages)
    assert far["rows"] == near["rows"] and far["steps"] == near["steps"]
    assert pages[1].count("data:image") == pages[0].count("data:image") > 10
    there = pairmill("report", runs[1], *IMPORT, "--out", "s3://bucket/pages/page.html")
    assert there.exit_code == 0 and "page.html" in s3.files("pages"), there.output


def test_a_retry_tries_failed_rows_in_object_storage(runs: tuple[str, str]) -> None:
    done = pairmill("retry", runs[1], "--reason", "all", *IMPORT, "--executor", "local", "--json")
    assert done.exit_code == 0, done.output


def test_commands_on_a_run_that_is_not_there(s3: S3Server) -> None:
    for command in ("status", "failures", "report", "gc", "verify"):
        missing = pairmill(command, s3.place("nothing"))
        assert missing.exit_code == 2 and "run" in missing.stderr and "Traceback" not in missing.stderr, (command, missing.output)
        assert "there is no such folder" not in missing.stderr, missing.stderr


def test_doctor_tries_the_store_that_is_to_hold_the_run(s3: S3Server) -> None:
    place = place_of(s3.place("new/run"))
    assert isinstance(place, ObjectPath)
    found = object_store(place)
    assert found.state == "ok" and "conditional puts are heeded" in found.found and not s3.files("new"), found
    s3.conditions = False
    found = object_store(place)
    assert found.state == "warning" and "one at a time" in found.do and not s3.files("new"), found


def test_doctor_with_a_run_directory_in_object_storage(s3: S3Server) -> None:
    told = pairmill("doctor", "--out", "s3://no-such-bucket/run", "--json")
    found = {check["name"]: check for check in json.loads(told.stdout)}
    assert told.exit_code == 1 and found["object store"]["state"] == "problem" and "no bucket 'no-such-bucket'" in found["object store"]["found"]
    assert "free in" in found["disk"]["found"], "the folder where files wait for their upload"
