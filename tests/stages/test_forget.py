"""forget through the machine: nothing of a forgotten row is left, the dataset is as if it had never been there, and a kill at any commit costs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline import registry
from pipeline.changed import changed_run
from pipeline.cli import app
from pipeline.corpus import Corpus
from pipeline.forgotten import Forgotten, checked, domains_of, parsed
from pipeline.run import open_run
from pipeline.whatif_report import whatif
from stages.shards.verify import verify_dataset
from tests.stages.conftest import Web, jpeg_bytes

SALT = "00112233445566778899aabbccddeeff"
ROWS = 24
SECRET = {"url": 3, "domain": 5, "hash": 8, "id": 11}  # rows that the options name; 4 and 9 are copies of 3 and 8 elsewhere


@pytest.fixture(autouse=True)
def toys() -> None:
    registry.import_file(str(Path(__file__).with_name("forget_toys.py")))


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


def body_of(row: int) -> bytes:
    """Every row has an image of its own, but 9 has the bytes of 8, and 4 the picture of 3 in a smaller size."""
    if row != 4:
        return jpeg_bytes(160, 120, seed=8 if row == 9 else row)
    small = io.BytesIO()
    Image.open(io.BytesIO(body_of(3))).resize((140, 105)).save(small, "JPEG", quality=90)
    return small.getvalue()


@pytest.fixture
def table(tmp_path: Path, web: Web) -> Path:
    """A table of URLs on loopback under two names of the host."""
    lines = []
    for row in range(ROWS):
        web.answers[f"/picture-{row}.jpg"] = web.http(body_of(row), content_type="image/jpeg")
        url = web.url(f"/picture-{row}.jpg")
        url = url.replace("127.0.0.1", "localhost") if row == SECRET["domain"] else url
        lines.append({"url": url, "alt_text": f"the unmistakable caption of picture number {row} on a table"})
    lines.append({"url": web.url("/picture-3.jpg"), "alt_text": "another caption of the third picture"})
    path = tmp_path / "urls.parquet"
    pq.write_table(pa.Table.from_pylist(lines), path)
    return path


def recipe_file(folder: Path, table: Path, scored: bool) -> str:
    """With `scored`: vectors, and captions of a model, whose answers are cached."""
    stages: list[Any] = ["url_dup", "text_rules", {"download": {"allow_private": True, "min_short_side": 1}}, {"image_hash": {"pdq": False}}]
    models = {}
    if scored:
        stages += ["toy_vectors", {"caption_short": {"use": "caption", "model": "teller", "prompt": "caption_short"}}]
        models = {"teller": {"kind": "fake"}}
    stages += [{"near_dup": {"by": "phash"}}, "dedup"]
    jobs: list[Any] = [{"write_shards": {"max_samples": 6, "parts_per_group": 2}}, {"write_index": {"name": "crawl"}}, *(["report"] if scored else [])]
    data = {"name": "f", "input": {"kind": "url_table", "table": str(table), "text": "alt_text", "rows_per_part": 8}, "stages": stages, "jobs": jobs}
    path = folder / ("scored.yaml" if scored else "plain.yaml")
    path.write_text(yaml.safe_dump({**data, "models": models} if models else data))
    return str(path)


def ran(recipe: str, out: Path) -> None:
    done = pairmill("run", recipe, "--out", str(out), "--executor", "local", "--progress", "lines")
    assert done.exit_code == 0, done.output


def rows_in(table: Path) -> list[dict[str, Any]]:
    return pq.read_table(table).to_pylist()


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(out: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of a run, as it is and, where it is Parquet, with all its columns unpacked."""
    for path in sorted(out.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                yield path, b"".join(_unpacked(row) for row in table.to_pylist())


def _unpacked(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(map(_unpacked, value.values()))
    if isinstance(value, list):
        return b"".join(map(_unpacked, value))
    return value if isinstance(value, bytes) else str(value).encode()


def options(table: Path, out: Path) -> list[str]:
    """One row by each of the options."""
    rows = rows_in(table)
    ids = [value for part in range(4) for value in pq.read_table(out / f"values/source/part-{part:05d}.parquet")["sample_id"].to_pylist()]
    return [
        "--url", rows[SECRET["url"]]["url"], "--domain", "localhost", "--hash", hashlib.sha256(body_of(SECRET["hash"])).hexdigest(),
        "--id", ids[SECRET["id"]].hex(),
    ]  # fmt: skip


def test_nothing_is_left_of_a_forgotten_row_and_the_dataset_is_as_if_it_had_never_been(table: Path, web: Web, tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, table, scored=True), tmp_path / "run"
    ran(recipe, out)
    assert whatif(changed_run(out, []), tokens=False)["cache"]["files_made"]  # columns of the whole run, ids and digests among them
    corpus = Corpus(open_run(out))
    for name in ("source.alt_text", "source.url"):
        corpus.column(corpus.run.chain.find_column(name))
    Forgotten(salt=SALT).write(out)
    rows, asked = rows_in(table), options(table, out)
    gone = [3, 5, 8, 9, 11, 24]  # 24 has the URL of 3, 9 the bytes of 8
    needles = [rows[row]["url"].encode() for row in gone] + [rows[row]["alt_text"].encode() for row in gone]
    needles += [piece for row in gone[:5] for piece in (body_of(row)[-400:], hashlib.sha256(body_of(row)).digest())]
    needles += [np.frombuffer(hashlib.sha256(body_of(row)).digest()[:16], np.uint8).astype(np.float16).tobytes() for row in gone[:5]]
    ids = [value for part in range(4) for value in pq.read_table(out / f"values/source/part-{part:05d}.parquet")["sample_id"].to_pylist()]
    needles += [ids[row] for row in gone] + [ids[row].hex().encode() for row in gone]
    before = b"".join(data for _, data in contents(out))
    assert all(needle in before for needle in needles)
    assert json.loads(pairmill("forget", str(out), *asked, "--dry-run", "--json").stdout)["rows"] == len(gone)
    fetched = sum(web.asked.values())
    done = pairmill("forget", str(out), *asked, "--executor", "local", "--json")
    assert done.exit_code == 0, done.output
    proof = json.loads(done.stdout)
    assert proof["rows"] == len(gone) and proof["manifest_before"] != proof["manifest_after"]
    for path, data in contents(out):
        found = [needle for needle in needles if needle in data]
        assert not found, (path, found)
    assert not list(verify_dataset(out / "dataset", decode=True))
    # A row that was a duplicate of a forgotten one, or whose text had joined it, is there in its own right.
    kept = {row["url"] for path in (out / "dataset/shards").glob("train-?????.parquet") for row in pq.read_table(path).to_pylist()}
    assert rows[4]["url"] in kept and len(kept) == ROWS - 5
    # The same command again, and a run, fetch nothing and change nothing; a fresh run that obeys the list gives the same bytes.
    assert sum(web.asked.values()) == fetched
    published = tree(out / "dataset")
    ran(recipe, out)
    assert tree(out / "dataset") == published and sum(web.asked.values()) == fetched
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(out / "forgotten.json", fresh)
    ran(recipe, fresh)
    assert tree(fresh / "dataset") == published
    assert web.asked["/picture-3.jpg"] == 1
    shutil.rmtree(out / "values/source")
    ran(recipe, out)  # the input is read again, and the rows are refused
    assert tree(out / "dataset") == published


KILLER = """
import os, signal, sys
from pathlib import Path
left, rename, unlink = [int(sys.argv[1])], os.rename, Path.unlink
def counted(real):
    def call(*args, **kwargs):
        if 'lock' not in str(args[-1]) and 'lock' not in str(args[0]):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
os.rename, Path.unlink = counted(rename), counted(unlink)
sys.argv = ['pairmill', *sys.argv[2:]]
from pipeline.cli import main
main()
"""


@contextlib.contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that are committed or removed meanwhile, without those of the lock."""
    steps: list[str] = []

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if "lock" not in str(args[-1]) and "lock" not in str(args[0]):
                steps.append(str(args[-1]))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted(os.rename))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        yield steps


@pytest.mark.parametrize("shares", [(0.05,), pytest.param((0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 0.97), marks=pytest.mark.slow)])
def test_a_kill_at_any_commit_and_the_command_again(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: tuple[float, ...]) -> None:
    recipe, out = recipe_file(tmp_path, table, scored=False), tmp_path / "run"
    ran(recipe, out)
    Forgotten(salt=SALT).write(out)
    asked = options(table, out)
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    with counting(monkeypatch) as steps:
        assert pairmill("forget", str(whole), *asked, "--executor", "local").exit_code == 0
    expected = tree(whole / "dataset")
    unpublished = next(nth for nth, step in enumerate(steps) if step.endswith("manifest.json"))  # the dataset has no manifest then
    points = [int(share * len(steps)) for share in shares] + [unpublished + 1]
    kills = 0
    for nth in points:
        broken = tmp_path / f"broken-{nth}"
        shutil.copytree(out, broken)
        call = [sys.executable, "-c", KILLER, str(nth), "forget", str(broken), *asked, "--executor", "local", "--progress", "lines"]
        killed = subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2], check=False)
        kills += killed.returncode == -9
        if Forgotten.of_run(broken).open:
            refused = pairmill("run", recipe, "--out", str(broken), "--executor", "local")
            assert refused.exit_code == 1 and "pairmill forget" in refused.output
        again = pairmill("forget", str(broken), *([] if Forgotten.of_run(broken).open else asked), "--executor", "local")
        assert again.exit_code == 0, again.output
        assert tree(broken / "dataset") == expected
        assert not Forgotten.of_run(broken).open
        shutil.rmtree(broken)
    assert kills == len(points)


def test_a_list_is_obeyed_by_another_run_and_by_an_index(table: Path, web: Web, tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, table, scored=False), tmp_path / "run"
    ran(recipe, out)
    index = tmp_path / "crawl.index.parquet"
    shutil.copy(out / "index/crawl.index.parquet", index)
    items = set(pq.read_table(index)["item"].to_pylist())
    done = pairmill("forget", str(out), *options(table, out), "--executor", "local", "--index", str(index), "--json")
    assert json.loads(done.stdout)["indexes"] == {str(index): 4}  # 4 of the 6 rows had been kept
    left = set(pq.read_table(index)["item"].to_pylist())
    assert len(items - left) == 4 and left <= items
    data = yaml.safe_load(Path(recipe).read_text())
    lists = [str(out / "forgotten.json")]
    data["stages"].insert(0, {"refuse": {"lists": lists}})
    data["stages"].insert(4, {"refuse_images": {"use": "refuse", "lists": lists}})
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(data))
    web.asked.clear()
    ran(str(other), tmp_path / "other")
    rejected = [row for path in (tmp_path / "other/dataset/rejected").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = sorted((row["stage"], row["detail"]) for row in rejected if row["reason"] == "forgotten")
    assert found == [*[("refuse", "id")] * 3, *[("refuse", "url")] * 3]  # 8, 9 and 11 by their ids; 3, 24 and 5 by URL and host
    assert "/picture-3.jpg" not in web.asked and "/picture-5.jpg" not in web.asked


def test_an_image_on_the_list_is_not_stored_again(table: Path, tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, table, scored=False), tmp_path / "run"
    out.mkdir()
    listed = Forgotten()
    listed.add("hash", hashlib.sha256(body_of(8)).hexdigest())
    listed.write(out)
    ran(recipe, out)
    left = [row for path in sorted((out / "dataset/rejected").glob("*.parquet")) for row in pq.read_table(path).to_pylist() if row["reason"] == "forgotten"]
    assert [(row["stage"], row["url"].rpartition("/")[2]) for row in left] == [("download", "picture-8.jpg"), ("download", "picture-9.jpg")]
    assert not [path for path, data in contents(out) if body_of(8)[-400:] in data]


def test_forms_of_what_is_named() -> None:
    assert domains_of("https://A.b.Example:8080/x?y") == ["a.b.example", "b.example", "example"] and domains_of("no url") == []
    lines = ["# note", "", "https://a.example/x.jpg", "b.example", "ab" * 32, "cd" * 16]
    assert parsed(lines) == [("url", "https://a.example/x.jpg"), ("domain", "b.example"), ("hash", "ab" * 32), ("id", "cd" * 16)]
    assert checked("domain", "Example.ORG.") == ("domain", "example.org")
    assert domains_of("https://bücher.example/x")[0] == checked("domain", "Bücher.example")[1] == "xn--bcher-kva.example"
    one = Forgotten()
    one.add("domain", "b.example")
    assert one.refuses_url("http://www.b.example/1") and not one.refuses_url("http://bb.example/1") and not one.refuses_url("http://example/1")
    assert "example" not in json.dumps(one.entries)


def test_bad_requests_name_what_is_wrong(tmp_path: Path) -> None:
    assert "no run here" in pairmill("forget", str(tmp_path / "none"), "--id", "ab" * 16).output
    assert "64 hex digits" in pairmill("forget", str(tmp_path), "--hash", "xyz").output
    assert "name a host alone" in pairmill("forget", str(tmp_path), "--domain", "https://a.example/").output


def test_what_is_not_here_goes_on_the_list_and_changes_no_file_and_a_missing_index_is_told_first(table: Path, tmp_path: Path) -> None:
    recipe, out = recipe_file(tmp_path, table, scored=False), tmp_path / "run"
    ran(recipe, out)
    before = tree(out)
    missing = pairmill("forget", str(out), "--domain", "localhost", "--index", "none", "--executor", "local")
    assert missing.exit_code == 2 and "no index 'none'" in missing.output and tree(out) == before
    done = pairmill("forget", str(out), "--url", "https://elsewhere.example/x.jpg", "--executor", "local", "--json")
    assert json.loads(done.stdout)["rows"] == 0 and "no row here is of what was named" in done.stderr
    after = tree(out)
    assert Forgotten.of_run(out).refuses_url("https://elsewhere.example/x.jpg")
    assert {name for name in after if after[name] != before.get(name)} <= {"forgotten.json", "lock.turn"}
