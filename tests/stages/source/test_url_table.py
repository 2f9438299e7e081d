from __future__ import annotations

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.errors import RecipeError
from schemas.sample import MAX_TEXT_BYTES, SOURCE_COLUMNS, sample_id
from stages.source.url_table import UrlTable

ROWS = [
    {"url": "http://a.example/1.jpg", "alt_text": 'a "red" chair, small', "similarity": 0.3, "uid": "u1"},
    {"url": "http://a.example/2.jpg", "alt_text": "line one\nline two", "similarity": 0.25, "uid": "u2"},
    {"url": "http://a.example/3.jpg", "alt_text": "椅子 & café", "similarity": 1.0, "uid": "u3"},
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """A table in the format of the extension."""
    table, name = pa.Table.from_pylist(rows), path.name
    if ".parquet" in name:
        pq.write_table(table, path, row_group_size=max(2, len(rows) // 20))
        return path
    if "json" in name:
        data = "\n".join(json.dumps(row) for row in rows).encode()
    else:
        sink = pa.BufferOutputStream()
        pa_csv.write_csv(table, sink, pa_csv.WriteOptions(delimiter="\t" if ".tsv" in name else ","))
        data = sink.getvalue().to_pybytes()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    elif name.endswith(".bz2"):
        data = bz2.compress(data)
    path.write_bytes(data)
    return path


def source(**params: Any) -> UrlTable:
    return UrlTable(
        UrlTable.Params(
            **{
                key: [str(p) for p in v] if isinstance(v, list) else str(v) if isinstance(v, Path) else v
                for key, v in params.items()
            }
        )
    )


def read(**params: Any) -> list[dict[str, Any]]:
    """All rows; every batch has the declared columns and types."""
    table = source(**params)
    declared = {**SOURCE_COLUMNS, **table.extra_columns(), "failure": pa.string(), "failure_detail": pa.string()}
    rows = []
    for batch in table.batches():
        assert dict(zip(batch.schema.names, batch.schema.types, strict=True)) == declared
        rows += batch.to_pylist()
    return rows


@pytest.mark.parametrize(
    "name",
    [
        "t.parquet",
        "t.csv",
        "t.csv.gz",
        "t.csv.zst",
        "t.tsv",
        "t.tsv.gz",
        "t.jsonl",
        "t.ndjson",
        "t.json",
        "t.jsonl.gz",
        "t.json.zst",
        "t.jsonl.bz2",
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read(table=write(tmp_path / name))
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    assert [row["sample_id"] for row in rows] == [sample_id("url_table", row["url"], row["alt_text"]) for row in ROWS]
    assert {row["failure"] for row in rows} == {None} and {row["alt_text_cut"] for row in rows} == {False}


def test_globs_folders_and_lists_are_read_in_order(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        write(tmp_path / f"part-{i}.parquet", [{"url": f"http://a.example/{i}", "alt_text": "x"}])
    urls = [f"http://a.example/{i}" for i in range(3)]
    assert [row["url"] for row in read(table=str(tmp_path / "*.parquet"))] == urls
    assert [row["url"] for row in read(table=tmp_path)] == urls
    assert [row["url"] for row in read(table=[tmp_path / "part-2.parquet", tmp_path / "part-0.parquet"])] == [
        urls[2],
        urls[0],
    ]


def test_columns_are_named_in_the_recipe_and_the_rest_is_carried(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        [
            {
                "URL": "http://a.example/",
                "TEXT": "x",
                "width": 10,
                "url": "other",
                "licence": "cc",
                "a.b": 1,
                "tags": ["p", "q"],
            }
        ],
    )
    table = source(table=path, url="URL", text="TEXT")
    assert table.extra_columns() == {
        "input_width": pa.int64(),
        "input_url": pa.string(),
        "licence": pa.string(),
        "a_b": pa.int64(),
        "tags": pa.list_(pa.string()),
    }
    (row,) = read(table=path, url="URL", text="TEXT")
    assert (row["url"], row["input_url"], row["input_width"], row["tags"]) == (
        "http://a.example/",
        "other",
        10,
        ["p", "q"],
    )
    assert list(source(table=path, url="URL", text="TEXT", columns_to_carry=["licence"]).extra_columns()) == ["licence"]


def test_rows_without_url_fail_and_null_texts_are_empty(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        [
            {"url": None, "alt_text": "x"},
            {"url": "  ", "alt_text": "y"},
            {"url": "http://a.example/", "alt_text": None},
        ],
    )
    rows = read(table=path)
    assert [row["failure"] for row in rows] == ["bad_row", "bad_row", None]
    assert rows[0]["failure_detail"] == "the row has no URL" and rows[2]["alt_text"] == ""


def test_a_table_without_texts(tmp_path: Path) -> None:
    assert read(table=write(tmp_path / "t.csv", [{"url": "http://a.example/"}]), text=None)[0]["alt_text"] == ""


def test_long_texts_are_cut_and_keep_the_id_of_the_whole(tmp_path: Path) -> None:
    long = "é" * MAX_TEXT_BYTES
    (row,) = read(table=write(tmp_path / "t.parquet", [{"url": "http://a.example/", "alt_text": long}]))
    assert row["alt_text_cut"] and len(row["alt_text"].encode()) == MAX_TEXT_BYTES
    assert row["sample_id"] == sample_id("url_table", "http://a.example/", long)


def test_bad_utf8_costs_one_row_its_characters_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"url,alt_text\nhttp://a.example/1,caf\xe9\nhttp://a.example/2,fine\n")
    assert [row["alt_text"] for row in read(table=path)] == ["caf\ufffd", "fine"]


def test_malformed_csv_lines_are_rows_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "url,alt_text,n\nhttp://a.example/1,one,1\nhttp://a.example/2,two,2,too many\nhttp://a.example/3,three,3\nonly one\n"
    )
    rows = read(table=path)
    assert [row["url"] for row in rows] == ["http://a.example/1", "http://a.example/3", "", ""]
    assert [row["failure"] for row in rows] == [None, None, "bad_row", "bad_row"]
    assert (
        rows[2]["failure_detail"] == "t.csv line 3: 4 fields, expected 3"
        and "too many" in rows[2]["alt_text"]
        and rows[2]["n"] is None
    )


def test_malformed_json_lines_are_rows_that_failed_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"url": "http://a.example/1", "alt_text": "one"}\n{"url": "http\n[1]\n\n{"url": "http://a.example/2", "alt_text": "\\ud800x"}\n'
    )
    rows = read(table=path)
    assert [row["failure"] for row in rows] == [None, "bad_row", "bad_row", None]
    assert rows[1]["alt_text"] == '{"url": "http' and "t.jsonl line 2: not valid JSON" in rows[1]["failure_detail"]
    assert rows[2]["failure_detail"] == "t.jsonl line 3: a JSON list, not an object"
    assert rows[3]["alt_text"] == "?x"


def test_tsv_without_header_and_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('a "quote\thttp://a.example/1\n"other\thttp://a.example/2\n')
    rows = read(table=path, column_names=["caption", "url"], text="caption", quoted=False)
    assert [(row["alt_text"], row["url"]) for row in rows] == [
        ('a "quote', "http://a.example/1"),
        ('"other', "http://a.example/2"),
    ]


def test_text_that_looks_like_null_or_a_number_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "url,alt_text\nhttp://a.example/1,NA\nhttp://a.example/2,007\nhttp://a.example/3,null\nhttp://a.example/4,\n"
    )
    assert [row["alt_text"] for row in read(table=path)] == ["NA", "007", "null", ""]


def test_types_of_several_files_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"url": "http://a.example/1", "alt_text": "x", "n": 1, "note": None}])
    write(tmp_path / "b.jsonl", [{"url": "http://a.example/2", "alt_text": "x", "n": 0.5, "note": "seen"}])
    rows = read(table=str(tmp_path / "*.jsonl"))
    assert [(row["n"], row["note"]) for row in rows] == [(1.0, None), (0.5, "seen")]
    assert source(table=str(tmp_path / "*.jsonl")).extra_columns()["n"] == pa.float64()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_type_guessed_wrong_is_an_error_with_its_remedy(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.source.table_files.SAMPLE_LINES", 2)
    monkeypatch.setattr("stages.source.table_files.BLOCK_BYTES", 200)
    rows = [{"url": f"http://a.example/{i}", "alt_text": "x", "code": str(i) if i > 30 else i} for i in range(40)]
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text(
            "url,alt_text,code\n" + "".join(f"{r['url']},x,{'c' if i > 30 else ''}{i}\n" for i, r in enumerate(rows))
        )
    else:
        path.write_text("\n".join(json.dumps({**r, "code": f"c{i}" if i > 30 else i}) for i, r in enumerate(rows)))
    with pytest.raises(RecipeError, match="column_types"):
        read(table=path)
    found = read(table=path, column_types={"code": "string"})
    assert (found[0]["code"], found[39]["code"]) == ("0", "c39")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"table": "{tmp}/nothing-*.parquet"}, "no file matches '{tmp}/nothing-*.parquet'"),
        ({"table": "{tmp}/t.parquet", "url": "uri"}, "has no column 'uri' (did you mean 'url'?); it has url, alt_text"),
        ({"table": "{tmp}/t.parquet", "text": "alttext"}, "did you mean 'alt_text'"),
        ({"table": "{tmp}/t.parquet", "columns_to_carry": ["uuid"]}, "did you mean 'uid'"),
        ({"table": "{tmp}/t.parquet", "url": "tags"}, "'tags' of {tmp}/t.parquet holds list"),
        ({"table": "{tmp}/broken.parquet"}, "{tmp}/broken.parquet: cannot be read as parquet"),
        ({"table": "{tmp}/cut.csv.gz"}, "{tmp}/cut.csv.gz: cannot be read as csv"),
        ({"table": "{tmp}/table.xyz"}, "the extension tells no format"),
        ({"table": "{tmp}/urls.txt"}, "for a list of URLs without texts add --set input.format=csv"),
        ({"table": "{tmp}/urls.csv"}, "{tmp}/urls.csv has no header: its first line is http://a.example/1.jpg; name its columns"),
        ({"table": "{tmp}/utf16.csv"}, "{tmp}/utf16.csv: cannot be read as csv: 'utf-8' codec can't decode"),
        (
            {"table": ["{tmp}/t.parquet", "{tmp}/words.parquet"]},
            "{tmp}/words.parquet: column 'similarity' is string, and double",
        ),
    ],
)
def test_errors_name_file_and_column(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    rows = [{**row, "tags": ["x"]} for row in ROWS]
    write(tmp_path / "t.parquet", rows)
    write(tmp_path / "words.parquet", [{**row, "similarity": "high"} for row in rows])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is no table")
    whole = write(tmp_path / "cut.csv.gz", ROWS * 1000).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "table.xyz").write_text("x")
    for name in ("urls.txt", "urls.csv"):
        (tmp_path / name).write_text("http://a.example/1.jpg\nhttp://a.example/2.jpg\n")
    (tmp_path / "utf16.csv").write_text("url,alt_text\nhttp://a.example/1.jpg,one\n", encoding="utf-16")
    filled = {
        key: [v.format(tmp=tmp_path) for v in value] if isinstance(value, list) else value.format(tmp=tmp_path)
        for key, value in params.items()
    }
    with pytest.raises(RecipeError) as caught:
        read(**filled)
    assert message.format(tmp=tmp_path) in str(caught.value)


def test_a_bare_list_of_urls_is_read_as_the_message_says(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://a.example/1.jpg\nhttp://a.example/2.jpg\n")
    rows = read(table=tmp_path / "urls.txt", format="csv", column_names=["url"], text=None)
    assert [(row["url"], row["failure"]) for row in rows] == [("http://a.example/1.jpg", None), ("http://a.example/2.jpg", None)]


def test_fingerprint_tells_another_input(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl")
    before = source(table=path).fingerprint()
    assert before == source(table=path).fingerprint()
    (tmp_path / "moved").mkdir()
    assert before == source(table=write(tmp_path / "moved" / "t.jsonl")).fingerprint()
    assert before != source(table=path, text="uid").fingerprint()
    write(path, [ROWS[0], ROWS[2], ROWS[1]])
    assert before != source(table=path).fingerprint()


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValidationError):
        UrlTable.Params(table="x", column="y")  # type: ignore[call-arg]


PEAK_OF_READING = """
import resource, sys
from stages.source.url_table import UrlTable
read = lambda path: [batch.num_rows for batch in UrlTable(UrlTable.Params(table=path)).batches()]
read(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sizes = read(sys.argv[2])
assert sum(sizes) == 50_000 and max(sizes) <= 10_000, sizes
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_large_table_is_streamed(tmp_path: Path, kind: str) -> None:
    """Reading 50,000 rows (80 MB of text) takes at most 50 MiB more than reading 10,000 (16 MB)."""
    rows = [{"url": f"http://a.example/{i}", "alt_text": f"{i} " + "x" * 1600} for i in range(50_000)]
    small, large = write(tmp_path / f"small.{kind}", rows[:10_000]), write(tmp_path / f"large.{kind}", rows)
    del rows
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_READING, str(small), str(large)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50
