from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_params
from schemas.sample import sample_id
from stages.source.image_folder import ImageFolder
from tests.stages.source.made_tars import facts, picture, rows_of


def source(folder: Any, **params: Any) -> ImageFolder:
    return ImageFolder(build_params(ImageFolder, {"folder": str(folder), **params}, "input"))


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


FILES: dict[str, bytes | str] = {
    "a.jpg": picture(1), "a.txt": "eins\n", "a/b.png": picture(2, format="PNG"), "a/b.json": json.dumps({"caption": "zwei", "url": "http://x/2", "n": 2}),
    "a.b/c.JPEG": picture(3), "a.b/c.JPEG.txt": "drei", "z/deep/er/d.webp": picture(4, format="WEBP"),
    ".hidden.jpg": b"x", ".cache/e.jpg": b"x", "notes.md": "x",
}  # fmt: skip


def test_rows_stand_in_the_order_of_paths_with_captions_from_beside(tmp_path):
    rows = rows_of(source(fill(tmp_path, FILES)))
    assert facts(rows) == [("a.b/c.JPEG", "drei", None), ("a.jpg", "eins", None), ("a/b.png", "zwei", None), ("z/deep/er/d.webp", "", None)]
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert (rows[2]["url"], rows[2]["n"], rows[1]["url"]) == ("http://x/2", 2, None)
    assert rows[1]["sample_id"] == sample_id("image_folder", "a.jpg", "eins")
    assert rows[1]["source_file"] == str(tmp_path / "a.jpg") and rows[1]["source_offset"] is None


def test_rows_and_fingerprint_depend_on_names_alone(tmp_path):
    there = source(fill(tmp_path / "one", FILES))
    back = source(fill(tmp_path / "two", dict(reversed(FILES.items()))))
    first, second = rows_of(there), rows_of(back)
    for row in first + second:
        row.pop("source_file")
    assert first == second and there.fingerprint() == back.fingerprint()
    (tmp_path / "two" / "a.txt").write_text("another caption")
    assert there.fingerprint() != source(tmp_path / "two").fingerprint()


def test_a_remote_folder_gives_the_same_rows(tmp_path):
    memory = fsspec.filesystem("memory")
    for name, data in FILES.items():
        memory.pipe(f"/remote/{name}", data.encode() if isinstance(data, str) else data)
    try:
        remote, local = source("memory://remote"), source(fill(tmp_path, FILES))
        theirs, ours = rows_of(remote), rows_of(local)
        assert theirs[0].pop("source_file") == "memory://remote/a.b/c.JPEG"
        assert remote.fingerprint() == local.fingerprint()
        for row in theirs[1:] + ours:
            row.pop("source_file")
        assert theirs == ours
    finally:
        memory.rm("/remote", recursive=True)


def test_a_caption_without_image_and_broken_side_files_are_failed_rows(tmp_path):
    fill(tmp_path, {"a.jpg": picture(1), "a.json": "{broken", "b.jpg": picture(2), "b.json": "[1]", "lonely.txt": "hi", "c.jpg": picture(3)})
    (tmp_path / "c.txt").mkdir()
    os.mkfifo(tmp_path / "p.jpg")
    found = {row["path"]: (row["failure"], row["failure_detail"]) for row in rows_of(source(tmp_path))}
    assert {path: code for path, (code, _) in found.items()} == {
        "a.jpg": "bad_row", "b.jpg": "bad_row", "lonely.txt": "missing_image", "c.jpg": None, "p.jpg": "unreadable",
    }  # fmt: skip
    assert "a.json" in found["a.jpg"][1] and "a JSON list" in found["b.jpg"][1]


def test_links_that_lead_out_are_refused_and_those_inside_are_taken(tmp_path):
    outside = fill(tmp_path / "outside", {"secret.jpg": picture(9), "secret.txt": "secret"})
    folder = fill(tmp_path / "in", {"real/a.jpg": picture(1), "b.jpg": picture(2)})
    for name, target in {
        "out.jpg": outside / "secret.jpg", "inner.jpg": folder / "real" / "a.jpg", "gone.jpg": folder / "none.jpg", "sub": outside, "again": folder / "real",
        "b.txt": outside / "secret.txt", "loop.jpg": folder / "loop.jpg", "sub.v1": outside,
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    rows = {row["path"]: row for row in rows_of(source(folder))}
    assert {path: row["failure"] for path, row in rows.items()} == {
        "out.jpg": "unsafe_path", "inner.jpg": None, "gone.jpg": "missing_image", "sub": "unsafe_path", "again": "unsafe_path", "b.jpg": "unsafe_path",
        "loop.jpg": "missing_image", "sub.v1": "unsafe_path", "real/a.jpg": None,
    }  # fmt: skip
    assert rows["b.jpg"]["alt_text"] == "" and rows["out.jpg"]["source_file"] is None
    (tmp_path / "link").symlink_to(folder)
    assert {row["path"] for row in rows_of(source(tmp_path / "link")) if row["failure"] is None} == {"inner.jpg", "real/a.jpg"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file, so that none is unreadable")
def test_folders_and_captions_without_permission_are_failed_rows(tmp_path):
    fill(tmp_path, {"a.jpg": picture(1), "a.txt": "x", "shut.v1/b.jpg": picture(2)})
    (tmp_path / "a.txt").chmod(0)
    (tmp_path / "shut.v1").chmod(0)
    try:
        assert facts(rows_of(source(tmp_path))) == [("a.jpg", "", "unreadable"), ("shut.v1", "", "unreadable")]
    finally:
        (tmp_path / "shut.v1").chmod(0o700)


def test_a_name_that_is_not_utf_8_is_a_failed_row(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(picture(1))
    (row,) = rows_of(source(tmp_path))
    assert (row["path"], row["failure"]) == ("caf\ufffd.jpg", "unreadable")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


LINES = [
    {"file_name": name, "caption": caption, "tag": tag}
    for name, caption, tag in (
        ("b.jpg", "b one", "x"), ("./a.jpg", "a one", "y"), ("b.jpg", "b two", "z"), ("none.jpg", "lost", "x"), ("", "nameless", "x"), ("../up.jpg", "up", "x"),
    )
]  # fmt: skip


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_table_of_captions(tmp_path, name):
    fill(tmp_path, {"a.jpg": picture(1), "b.jpg": picture(2), "bare.jpg": picture(3), "a.txt": "not read", "none.txt": "not read"})
    write_table(tmp_path / name, LINES)
    rows = rows_of(source(tmp_path, table=name))
    assert {(row["path"], row["alt_text"], row["failure"]) for row in rows} == {
        ("", "nameless", "bad_row"), ("../up.jpg", "up", "unsafe_path"), ("a.jpg", "a one", None), ("b.jpg", "b one", None), ("bare.jpg", "", None),
        ("none.jpg", "lost", "missing_image"),
    }  # fmt: skip
    by_path = {row["path"]: row for row in rows}
    assert [entry["text"] for entry in by_path["b.jpg"]["texts"]] == ["b one", "b two"] and by_path["b.jpg"]["tag"] == "x"
    assert by_path["bare.jpg"]["texts"] == [] and by_path["bare.jpg"]["tag"] is None
    assert "line 4" in by_path["none.jpg"]["failure_detail"]
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)


def test_a_table_with_lists_and_several_columns(tmp_path):
    fill(tmp_path / "images", {"sub/a.jpg": picture(1)})
    rows = [{"image": str(tmp_path / "images/sub/a.jpg"), "short": "s", "long": ["l1", "l2"], "w": 3}]
    table = write_table(tmp_path / "captions.parquet", rows)
    found = source(tmp_path / "images", table=str(table), table_file="image", table_text=["long", "short"])
    (row,) = rows_of(found)
    assert (row["alt_text"], [entry["text"] for entry in row["texts"]], row["w"]) == ("l1", ["l1", "l2", "s"], 3)


def test_a_broken_line_of_the_table_is_a_failed_row(tmp_path):
    fill(tmp_path, {"a.jpg": picture(1), "t.csv": "file_name,caption\na.jpg,one\nbroken,line,with,more\n"})
    rows = rows_of(source(tmp_path, table="t.csv"))
    assert facts(rows) == [("a.jpg", "one", None), ("", "broken,line,with,more", "bad_row")]


def test_globs_suffixes_and_flat_folders(tmp_path):
    fill(tmp_path, FILES)
    assert [row["path"] for row in rows_of(source(tmp_path, match=["a*"]))] == ["a.b/c.JPEG", "a.jpg", "a/b.png"]
    assert [row["path"] for row in rows_of(source(tmp_path, image=[".PNG"], caption=None))][0] == "a/b.png"
    assert [row["path"] for row in rows_of(source(tmp_path, recursive=False))] == ["a.jpg"]


def test_captions_by_line(tmp_path):
    (row,) = rows_of(source(fill(tmp_path, {"a.jpg": picture(1), "a.txt": "one\ntwo\n"}), lines=True))
    assert row["alt_text"] == "one" and [entry["text"] for entry in row["texts"]] == ["one", "two"]


def test_errors_name_the_option(tmp_path):
    fill(tmp_path, {"t.csv": "file,caption\na.jpg,one\n"})
    with pytest.raises(RecipeError, match="input.folder: no folder"):
        source(tmp_path / "none").fingerprint()
    with pytest.raises(RecipeError, match=r"input.table_file: .*t.csv has no column 'file_name' \(did you mean 'file'\?\)"):
        rows_of(source(tmp_path, table="t.csv"))
    with pytest.raises(RecipeError, match="'txt' cannot be an image and a text"):
        source(tmp_path, image=["txt"])
