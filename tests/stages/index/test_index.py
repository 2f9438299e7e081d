"""Index files: bytes that depend on contents alone, and the commands that make, join and cut them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.storage import place_of
from stages.index.build import build_index, read_texts
from stages.index.evaluation import is_plain
from stages.index.files import SUFFIX, index_path, make_index, read_facts, read_index, write_index
from stages.index.texts import TextTable, normalised
from tests.pipeline.s3_server import S3Server, running
from tests.stages.conftest import jpeg_bytes


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    yield from running(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, two with captions, one damaged file."""
    made = tmp_path / "images"
    (made / "inner").mkdir(parents=True)
    for row in range(4):
        (made / ("inner" if row > 1 else "") / f"p{row}.jpg").write_bytes(jpeg_bytes(160, 120, seed=row))
    (made / "p0.txt").write_text("A Dog -- runs, over the GREEN field towards its ball!")
    (made / "broken.jpg").write_bytes(jpeg_bytes(160, 120, seed=9)[:700])
    return made


def test_an_index_of_a_folder_depends_on_its_contents_alone(folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    index = build_index("e", [str(folder)], notes=notes)
    broken, *rows = index.table.to_pylist()
    assert {name for name, value in broken.items() if value is not None} == {"item", "raw_sha256"}  # what cannot be decoded is known by its bytes
    assert [row["item"] for row in rows] == ["inner/p2.jpg", "inner/p3.jpg", "p0.jpg", "p1.jpg"]
    assert rows[2]["raw_sha256"] == hashlib.sha256((folder / "p0.jpg").read_bytes()).digest()
    assert rows[2]["texts"] == ["a dog runs over the green field towards its ball"] and rows[3]["texts"] is None
    assert all(len(row["windows"]) == 8 * 29 and len(row["thumb"]) == 1024 and row["windows"][:8] != b"\0" * 8 for row in rows)
    assert len(notes) == 1 and notes[0].startswith("broken.jpg") and notes[0].endswith("known by its bytes alone")
    paths = [tmp_path / f"{name}{SUFFIX}" for name in "ab"]
    write_index(index, paths[0])
    write_index(make_index("e", index.table.take(pa.array([3, 1, 4, 0, 2, 1]))), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_facts(paths[0]).counts["items"] == 5 and read_facts(paths[0]).digest == index.facts.digest


def test_commands_build_list_merge_and_remove(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRMILL_INDEXES", str(tmp_path / "mine"))
    (tmp_path / "t.jsonl").write_text('{"texts": ["one text of quite a few words"]}\n{"texts": ["second", "third"]}\n')
    assert pairmill("index", "build", "pictures", "--images", str(folder)).exit_code == 0
    assert pairmill("index", "build", "words", "--texts", str(tmp_path / "t.jsonl")).exit_code == 0
    listed = json.loads(pairmill("index", "list", "--json").stdout)["indexes"]
    assert [(one["name"], one["counts"]["items"]) for one in listed] == [("pictures", 5), ("words", 3)]
    both = [pairmill("index", "merge", name, *parts, "--json") for name, parts in (("both", ["pictures", "words"]), ("both", ["words", "pictures"]))]
    digests = {json.loads(one.stdout)["indexes"][0]["digest"] for one in both}
    assert len(digests) == 1
    digest = hashlib.sha256((folder / "p1.jpg").read_bytes()).hexdigest()
    removed = pairmill("index", "remove", "both", "--hash", digest.upper(), "--id", "p0.jpg", "--json")
    assert json.loads(removed.stdout)["removed_items"] == 2
    assert read_index(index_path("both")).table.num_rows == 6 and read_facts(index_path("both")).digest not in digests
    assert pairmill("index", "remove", "both").exit_code == 0 and not (tmp_path / "mine" / f"both{SUFFIX}").exists()
    (tmp_path / "mine" / f"bad{SUFFIX}").write_text("no Parquet")
    told = pairmill("index", "list", "--json")  # one damaged file hides no other
    assert [one["name"] for one in json.loads(told.stdout)["indexes"]] == ["pictures", "words"] and "is no index of pairmill" in told.stderr
    assert pairmill("index", "remove", "bad").exit_code == 0 and not (tmp_path / "mine" / f"bad{SUFFIX}").exists()
    wrong = pairmill("index", "remove", "pictrues")
    assert wrong.exit_code == 2 and "did you mean 'pictures'" in wrong.output


def test_an_index_in_object_storage_has_the_same_bytes(folder: Path, tmp_path: Path, s3: S3Server) -> None:
    index = build_index("e", [str(folder)])
    write_index(index, tmp_path / f"e{SUFFIX}")
    far = place_of(s3.place(f"indexes/e{SUFFIX}"))
    write_index(index, far)
    assert far.read_bytes() == (tmp_path / f"e{SUFFIX}").read_bytes()
    assert read_index(index_path(str(far))).table.equals(index.table)


def test_what_is_no_index_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(RecipeError, match="but no index of pairmill"):
        read_facts(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    with pytest.raises(RecipeError, match="none of the columns text"):
        list(read_texts(str(tmp_path / "b.csv")))


def test_texts_are_read_from_json_documents_and_gzipped_files(tmp_path: Path) -> None:
    coco = {"info": {"description": "no text of it"}, "annotations": [{"image_id": 1, "caption": "A dog."}, {"image_id": 2, "caption": "Two cats."}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "karpathy.json").write_text(json.dumps([{"filename": "a.jpg", "sentences": [{"raw": "A dog.", "tokens": ["a"]}]}, {"texts": ["Two cats."]}]))
    (tmp_path / "lines.json").write_text('{"caption": "A dog."}\n{"caption": "Two cats."}\n')
    with gzip.open(tmp_path / "z.txt.gz", "wt") as file:
        file.write("A dog.\nTwo cats.\n")
    for name in ("coco.json", "karpathy.json", "lines.json", "z.txt.gz"):
        assert list(read_texts(str(tmp_path / name))) == [(f"{name}:1", "a dog"), (f"{name}:2", "two cats")] and is_plain(str(tmp_path / name))


def test_texts_match_by_runs_of_eight_words() -> None:
    words = [f"w{number}" for number in range(20)]
    table = TextTable([("long", " ".join(words)), ("nine", " ".join(words[:9])), ("short", "just five words of text")], 5)
    assert table.best([" ".join(words)]) == ("long", 1.0)  # the first of two that are contained whole
    assert table.best([" ".join(words[4:])]) == ("long", round(9 / 13, 4))  # 13 runs of 8 in 20 words, 9 of them here
    assert table.best(["Just FIVE, words of text."]) == ("short", 1.0)
    assert table.best(["so these are just five words of text and more"]) is None
    assert table.best(["w1 w2 w3"]) is None
    assert normalised("  Ｆull-width, ﬁne ") == "full width fine"
    # Letters of scripts without spaces are words, also in an index that was made before they were.
    for stored in (normalised("一只黑色的狗在草地上奔跑"), "一只黑色的狗在草地上奔跑"):
        assert TextTable([("zh", stored)], 8).best(["看:一只黑色的狗在草地上奔跑。"]) == ("zh", 1.0)
