"""image_table: rows and images of Parquet and Arrow tables, and what a new user gets wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_params
from schemas.outcome import Failure
from schemas.sample import sample_id
from stages.images.local import Place, plan_reads, read_places
from stages.source.image_table import ImageTable
from stages.source.url_table import UrlTable
from tests.stages.source.made_tars import facts, picture, rows_of

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_of(count: int, image: pa.DataType = HF) -> pa.Table:
    """`count` rows with real images; captions are lists, n is int32."""
    images = [{"bytes": picture(n), "path": f"p{n}.jpg"} if pa.types.is_struct(image) else picture(n) for n in range(count)]
    captions = [[f"a {n}", f"b {n}"] for n in range(count)]
    return pa.table({"image": pa.array(images, image), "caption": captions, "n": pa.array(range(count), pa.int32())})


def write(path: Path, table: pa.Table, rows: int = 7, **options: Any) -> Path:
    """By the extension: Parquet; .arrow a stream, as `datasets` writes it; .feather an IPC file. `rows`: of a row group or batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows, **options)
        return path
    opened = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return path


def source(table: Any, **params: Any) -> ImageTable:
    given = [str(path) for path in table] if isinstance(table, list) else str(table)
    return ImageTable(build_params(ImageTable, {"table": given, **params}, "input"))


def images_of(rows: list[dict[str, Any]]) -> list[bytes | Failure]:
    """What read_images gets for each row."""
    places = [Place(at, row["source_file"], row["source_offset"], row["source_size"]) for at, row in enumerate(rows)]
    found = dict(pair for task in plan_reads(places) for piece in read_places(task, 1 << 20) for pair in piece)
    return [found[at] for at in range(len(rows))]


def codes_of(rows: list[dict[str, Any]]) -> list[str]:
    return [found.code if isinstance(found, Failure) else "" for found in images_of(rows)]


FORMATS = [
    ("a.parquet", HF, {"compression": "zstd"}),
    ("a.parquet", pa.large_binary(), {"compression": "none", "data_page_version": "2.0"}),
    ("a.arrow", HF, {}),
    ("a.arrow", pa.binary(), {"compression": "lz4"}),
    ("a.feather", pa.binary(), {}),
    ("a.feather", HF, {"compression": "zstd"}),
]


@pytest.mark.parametrize(("name", "image", "options"), FORMATS)
def test_every_format_gives_the_same_rows_and_bytes(tmp_path, name, image, options):
    table = source(write(tmp_path / name, table_of(30, image), **options))
    rows = rows_of(table)
    assert facts(rows) == [(f"{name}/{n}", f"a {n}", None) for n in range(30)]
    assert [[entry["text"] for entry in row["texts"]] for row in rows] == [[f"a {n}", f"b {n}"] for n in range(30)]
    assert [row["n"] for row in rows] == list(range(30)) and table.extra_columns()["n"] == pa.int32()
    assert [row.get("image_path") for row in rows] == [f"p{n}.jpg" if image == HF else None for n in range(30)]
    assert rows[3]["sample_id"] == sample_id("image_table", f"{name}/3", "a 3")
    assert images_of(rows) == [picture(n) for n in range(30)]
    some = [rows[at] for at in (29, 6, 7, 22)]  # as of a later part, and of rows that are tried again
    assert images_of(some) == [picture(n) for n in (29, 6, 7, 22)]


def test_several_files_share_columns_and_depend_on_no_place(tmp_path):
    found = []
    for folder in (tmp_path / "one", tmp_path / "deep" / "er"):
        write(folder / "x" / "0.parquet", table_of(3))
        write(folder / "1.arrow", table_of(2).append_column("split", pa.array(["train", "test"])))
        (folder / "README.md").write_text("no table")
        table = source(folder)
        rows = rows_of(table)
        assert [row["path"] for row in rows] == ["1.arrow/0", "1.arrow/1", "x/0.parquet/0", "x/0.parquet/1", "x/0.parquet/2"]
        assert [row["split"] for row in rows] == ["train", "test", None, None, None]
        assert images_of(rows) == [picture(n) for n in (0, 1, 0, 1, 2)]
        found.append(([row["sample_id"] for row in rows], table.fingerprint()))
    assert found[0] == found[1]
    changed = (tmp_path / "one" / "1.arrow").read_bytes().replace(b"train", b"trial")
    (tmp_path / "one" / "1.arrow").write_bytes(changed)
    assert source(tmp_path / "one").fingerprint() != found[0][1]


def test_texts_url_and_carried_columns_by_name(tmp_path):
    entries = [[{"text": "made", "kind": "caption_short"}, {"text": None, "kind": None}], None]
    columns = {
        "photo": pa.array([picture(1), picture(2)]), "image": ["a", "b"], "alt": pa.array(["one", None]).dictionary_encode(), "texts": entries,
        "link": ["http://x/1", ""], "width": [7, 8], "thumb": [b"1", b"2"], "score": pa.array([0.5, None], pa.float32()), "tags": [["x"], []],
    }  # fmt: skip
    path = write(tmp_path / "t.parquet", pa.table(columns))
    table = source(path, image="photo", text=["alt", "texts"], url="link")
    one, two = rows_of(table)
    assert (one["alt_text"], one["url"]) == ("one", "http://x/1") and (two["alt_text"], two["url"]) == ("", None)
    assert [(entry["kind"], entry["text"]) for entry in one["texts"]] == [("alt_text", "one"), ("caption_short", "made")]
    assert (one["input_image"], one["input_width"], one["score"], one["tags"]) == ("a", 7, 0.5, ["x"]) and two["score"] is None
    assert "thumb" not in one and table.extra_columns()["score"] == pa.float32()
    (one, _) = rows_of(source(path, image="photo", text=None, url=None, columns_to_carry=["thumb"]))
    assert one["thumb"] == b"1" and one["alt_text"] == "" and "score" not in one and "texts" not in one
    (alone, _) = rows_of(source(write(tmp_path / "alone.parquet", pa.table({"image": [picture(1), picture(2)]})), text=None))
    assert alone["path"] == "alone.parquet/0" and images_of([alone]) == [picture(1)]


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_cells_without_bytes_have_their_reason_or_a_file_beside_the_table(tmp_path, name):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "near.jpg").write_bytes(picture(9))
    (tmp_path / "secret.jpg").write_bytes(picture(8))
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    paths = ["sub/near.jpg", str(tmp_path / "in" / "sub" / "near.jpg"), "gone.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg"]
    images = [{"bytes": picture(1), "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"", "path": "x.jpg"}, {"bytes": bytes(2 << 20), "path": ""}]
    images += [{"bytes": None, "path": path} for path in paths]
    table = pa.table({"image": pa.array(images, HF), "caption": [f"t{n}" for n in range(len(images))]})
    rows = rows_of(source(write(tmp_path / "in" / name, table, 4)))
    found = images_of(rows)
    assert codes_of(rows) == [
        "", "missing_image", "missing_image", "empty_body", "too_large", "", "", "missing_image", "unsafe_path", "unsafe_path", "unsafe_path",
    ]  # fmt: skip
    assert found[0] == picture(1) and found[5] == found[6] == picture(9)
    assert f"{name}: column 'image' of row 1 is null" in found[1].detail  # type: ignore[union-attr]
    assert "gone.jpg" in found[7].detail and name in found[7].detail  # type: ignore[union-attr]


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    path = write(tmp_path / "t.parquet", table_of(30), 10, compression="zstd")
    rows = rows_of(source(path))
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    assert codes_of(rows) == [""] * 10 + ["unreadable"] * 10 + [""] * 10
    write(path, table_of(12))  # another table under the same name
    assert codes_of(rows) == [""] * 12 + ["unreadable"] * 18
    path.unlink()
    assert set(codes_of(rows)) == {"missing_image"}


def test_remote_tables_are_read_through_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("a.parquet", "b.arrow", "c.feather"):
        memory.pipe(f"/image_table/{name}", write(tmp_path / name, table_of(20)).read_bytes())
    try:
        rows = rows_of(source("memory://image_table/*"))
        assert [row["path"] for row in rows] == [f"{name}/{n}" for name in ("a.parquet", "b.arrow", "c.feather") for n in range(20)]
        assert images_of(rows) == [picture(n) for n in range(20)] * 3
    finally:
        memory.rm("/image_table", recursive=True)


_BOUNDED = """
import sys, pyarrow as pa
from stages.images.local import Place, plan_reads, read_places
from stages.source.image_table import ImageTable
tables = [[row for batch in ImageTable(ImageTable.Params(table=path)).batches() for row in batch.to_pylist()] for path in sys.argv[1:]]
print(pa.default_memory_pool().max_memory() >> 20)
for rows in tables:
    task, = plan_reads([Place(at, row["source_file"], row["source_offset"]) for at, row in enumerate(rows)])
    most = max(sum(len(data) for _, data in piece) for piece in read_places(task, 1 << 20))
    assert most < 9 << 20 and len(rows) == 400, most
print(pa.default_memory_pool().max_memory() >> 20)
"""


def test_memory_does_not_grow_with_the_row_group(tmp_path):
    """40 MB of images in one row group, and in one record batch: rows are read without them, and then some 8 MB are held at a time."""
    table = pa.table({"image": pa.array([number.to_bytes(2, "little") * 50_000 for number in range(400)]), "caption": ["x"] * 400})
    parquet = write(tmp_path / "t.parquet", table, 400, use_dictionary=False, data_page_size=1 << 20, write_batch_size=8)
    paths = [str(parquet), str(write(tmp_path / "t.arrow", table, 400))]
    done = subprocess.run([sys.executable, "-c", _BOUNDED, *paths], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    scanned, read = map(int, done.stdout.split())
    assert scanned < 8 and read < 30


def mistake(**params: Any) -> str:
    with pytest.raises(RecipeError) as told:
        source(**params).extra_columns()
    return str(told.value)


def test_what_a_new_user_gets_wrong_is_told_with_file_and_column(tmp_path):
    path = write(tmp_path / "t.parquet", table_of(3))
    assert "input.text: " in (told := mistake(table=path, text="captions")) and "did you mean 'caption'?" in told and str(path) in told and "text=null" in told
    assert "did you mean 'image'?" in (told := mistake(table=path, image="img")) and "--set input.image=image" in told
    assert "did you mean 'n'?" in mistake(table=path, columns_to_carry=["N"])
    assert "column 'n' of" in (told := mistake(table=path, text="n")) and "holds int32, not texts" in told
    assert "holds texts" not in (told := mistake(table=path, image="n")) and "holds int32, not bytes" in told and "input.image=image" in told
    urls = write(tmp_path / "urls.parquet", pa.table({"url": ["http://x/1"], "caption": ["a"]}))
    assert "input.kind=url_table" in mistake(table=urls) and "input.kind=url_table" in (told := mistake(table=urls, image="url")) and "holds texts" in told
    (tmp_path / "t.csv").write_text("url,caption\n")
    assert "input.kind=url_table" in mistake(table=tmp_path / "t.csv") and "no file matches" in mistake(table=tmp_path / "none.parquet")
    for name, keep in (("cut.parquet", -9), ("cut.feather", -9), ("no.arrow", 0)):
        whole = write(tmp_path / name, table_of(30)).read_bytes()
        (tmp_path / name).write_bytes(whole[:keep])
        assert name in (told := mistake(table=tmp_path / name)) and "cannot be read as a table" in told
    other = write(tmp_path / "u.parquet", table_of(2).set_column(2, "n", pa.array(["x", "y"])))
    assert "u.parquet: column 'n' is string, and int32" in mistake(table=[path, other])


def test_url_table_tells_of_image_table_where_there_are_bytes_and_no_url(tmp_path):
    path = write(tmp_path / "t.parquet", table_of(3))
    with pytest.raises(RecipeError, match=r"no column 'url'; it has .*, of which 'image' holds bytes.*input.kind=image_table"):
        UrlTable(UrlTable.Params(table=str(path))).extra_columns()
    nulls = write(tmp_path / "nulls.parquet", table_of(3).append_column("url", pa.nulls(3, pa.string())))
    (row, *_) = [row for batch in UrlTable(UrlTable.Params(table=str(nulls), text=None)).batches() for row in batch.to_pylist()]
    assert row["failure"] == "bad_row" and "input.kind=image_table" in row["failure_detail"]
    with pytest.raises(RecipeError, match="input.kind=image_table"):
        UrlTable(UrlTable.Params(table=str(write(tmp_path / "t.arrow", table_of(1))))).extra_columns()
    (tmp_path / "t.csv").write_text("url,caption\n,a dog\n")  # whose texts are read as bytes, and hold no images
    (row,) = [row for batch in UrlTable(UrlTable.Params(table=str(tmp_path / "t.csv"), text="caption")).batches() for row in batch.to_pylist()]
    assert row["failure"] == "bad_row" and row["failure_detail"] == "the row has no URL"


def test_an_arrow_stream_that_was_cut_is_told(tmp_path):
    path = write(tmp_path / "t.arrow", table_of(30))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(RecipeError, match=r"t.arrow: cannot be read as a table"):
        rows_of(source(path))


def test_tables_of_huggingface_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(12)], "caption": [f"t{n}" for n in range(12)], "label": [n % 2 for n in range(12)]}
    made = datasets.Dataset.from_dict(rows, features)
    made.save_to_disk(tmp_path / "disk")
    (tmp_path / "hub").mkdir()
    made.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    for folder in ("disk", "hub"):
        found = rows_of(source(tmp_path / folder))
        assert [(row["alt_text"], row["label"]) for row in found] == [(f"t{n}", n % 2) for n in range(12)]
        assert images_of(found) == [picture(n) for n in range(12)]
