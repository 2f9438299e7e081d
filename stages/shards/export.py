"""Export of a dataset as Parquet with embedded images, in the layout of Hugging Face.

Files `data/<split>-00000-of-00003.parquet`; `image` is a struct of bytes and path, 100 rows a row group and a page index, as hub viewers
ask (https://huggingface.co/docs/hub/datasets-image); the footer names `image` as an Image feature.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.errors import Fatal, RecipeError, as_fatal
from pipeline.files import commit_bytes, commit_file, parquet_source, temporary_name
from pipeline.registry import nearest
from pipeline.storage import Place
from schemas.dataset import CARD, FOOTER_KEY, MANIFEST, PLACE_COLUMNS, Manifest, ManifestError, Shard
from stages.shards.features import IMAGE, is_bytes

ROWS_PER_GROUP = 100
_FEATURES = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
_VERSION = 1  # raise when equal datasets are exported to other bytes


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one shard."""

    shard: Shard
    start: int
    stop: int


def export_dataset(dataset: Place, out: Path, split: str | None = None, max_bytes: int = 500_000_000) -> dict[str, Any]:
    """Write the splits of a dataset folder; returns rows, files, and how many files were written now.

    max_bytes: most image bytes of a file (a larger image stands alone). Memory is bounded by one row group and one shard's index. Files that
    an earlier call finished from equal shards stay. Raises RecipeError for a folder or split that is not there, Fatal where a tar is damaged.
    """
    try:
        manifest = Manifest.parse((dataset / MANIFEST).read_bytes(), str(dataset / MANIFEST))
    except (FileNotFoundError, ManifestError) as error:
        raise RecipeError(str(error)) from error
    if split is not None and split not in manifest.splits:
        raise RecipeError(f"--split {split}: this dataset has no such split{nearest(split, manifest.splits)}; it has {', '.join(manifest.splits)}")
    chosen = {name: part for name, part in manifest.splits.items() if part.samples and split in (None, name)}
    if isinstance(dataset, Path) and out.resolve().is_relative_to(dataset.resolve()):
        raise RecipeError(f"--out {out}: lies in the dataset, which only `pairmill run` may change; name another folder")
    found = {"rows": 0, "files": 0, "written": 0, "out": str(out)}
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, part in chosen.items():
        schema = _schema(dataset, part.shards)
        files = list(_cut(dataset, part.shards, max_bytes))
        due = [data / f"{name}-{at:05d}-of-{len(files):05d}.parquet" for at in range(len(files))]
        for path in set(data.glob(f"{name}-*-of-*.parquet")) - set(due):
            path.unlink()
        for path, pieces in zip(due, files, strict=True):
            found["written"] += _write(dataset, path, pieces, schema)
            found["rows"] += sum(piece.stop - piece.start for piece in pieces)
        found["files"] += len(files)
    commit_bytes(out / CARD, _card(dataset, manifest, list(chosen)))
    return found


def _cut(dataset: Place, shards: list[Shard], max_bytes: int) -> Iterator[list[Piece]]:
    """Rows of each file, in the order of the shards; image bytes of a file within the bound."""
    pieces: list[Piece] = []
    filled = 0
    for shard in shards:
        start = 0
        sizes = pq.read_table(parquet_source(dataset / shard.index), columns=["size"])["size"].to_pylist()
        for row, size in enumerate(sizes):
            if filled and filled + size > max_bytes:
                if row > start:
                    pieces.append(Piece(shard, start, row))
                yield pieces
                pieces, filled, start = [], 0, row
            filled += size
        if len(sizes) > start:
            pieces.append(Piece(shard, start, len(sizes)))
    if pieces:
        yield pieces


def _schema(dataset: Place, shards: list[Shard]) -> pa.Schema:
    """image, caption, texts and key, then the other columns of the index; bytes become hex, for which `datasets` has a type."""
    index = pq.read_schema(parquet_source(dataset / shards[0].index))
    rest = [field for field in index if field.name not in (*PLACE_COLUMNS, "caption", "texts", "key")]
    names = ["caption", "texts", "key", *(field.name for field in rest)]
    fields = [pa.field("image", IMAGE)]
    for name in names:
        kind = index.field(name).type
        fields.append(pa.field("source.image" if name == "image" else name, pa.string() if is_bytes(kind) else kind))
    return pa.schema(fields)


def _write(dataset: Place, path: Path, pieces: list[Piece], schema: pa.Schema) -> bool:
    """Write one file, unless it stands there already; its name is the commit. Returns whether it was written."""
    made_of = [[piece.shard.index_sha256, piece.shard.tar_sha256, piece.start, piece.stop] for piece in pieces]
    inputs = hashlib.sha256(json.dumps([_VERSION, schema.to_string(), made_of]).encode()).hexdigest()
    if _made_of(path) == inputs:
        return False
    temporary = temporary_name(path)
    try:
        marked = schema.with_metadata({b"huggingface": _FEATURES.encode(), FOOTER_KEY: inputs.encode()})
        with pq.ParquetWriter(temporary, marked, compression="zstd", write_page_index=True) as writer:
            for table in _groups(dataset, pieces, schema):
                writer.write_table(table.replace_schema_metadata(marked.metadata), row_group_size=ROWS_PER_GROUP)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        commit_file(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise as_fatal(error, str(path)) from error
        raise
    return True


def _made_of(path: Path) -> str:
    try:
        return (pq.read_schema(path).metadata or {}).get(FOOTER_KEY, b"").decode()
    except (FileNotFoundError, pa.ArrowInvalid):
        return ""


def _groups(dataset: Place, pieces: list[Piece], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of ROWS_PER_GROUP rows, the last one shorter; row groups do not end where a shard does."""
    waiting: list[pa.Table] = []
    rows = 0
    for piece in pieces:
        index = pq.read_table(parquet_source(dataset / piece.shard.index)).slice(piece.start, piece.stop - piece.start)
        with (dataset / piece.shard.tar).open("rb") as tar:
            start = 0
            while start < index.num_rows:
                part = index.slice(start, ROWS_PER_GROUP - rows)
                waiting.append(_with_images(part, tar, dataset / piece.shard.tar, schema))
                start, rows = start + part.num_rows, rows + part.num_rows
                if rows == ROWS_PER_GROUP:
                    yield pa.concat_tables(waiting)
                    waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _with_images(index: pa.Table, tar: Any, path: Place, schema: pa.Schema) -> pa.Table:
    images = []
    for key, ext, offset, size in zip(*(index[name].to_pylist() for name in ("key", "ext", "offset", "size")), strict=True):
        tar.seek(offset)
        data = tar.read(size)
        if len(data) != size:
            raise Fatal(f"{path}: {len(data)} of {size} bytes of {key} at {offset}: the tar was cut; run `pairmill verify`")
        images.append({"bytes": data, "path": f"{key}.{ext}"})
    columns: list[Any] = [pa.array(images, IMAGE)]
    for field in list(schema)[1:]:
        column = index["image" if field.name == "source.image" else field.name]
        columns.append(pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string()) if is_bytes(column.type) else column)
    return pa.table(columns, schema=schema.remove_metadata())


def _card(dataset: Place, manifest: Manifest, splits: list[str]) -> bytes:
    """The dataset's card, its YAML saying where the exported splits lie and nothing of the tars."""
    text = (dataset / CARD).read_text() if CARD in manifest.files else ""
    head, _, body = text.removeprefix("---\n").partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    front = {name: value for name, value in (yaml.safe_load(head) or {}).items() if name not in ("configs", "dataset_info")}
    if splits:
        front["configs"] = [{"config_name": "default", "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits]}]
    note = f"\n*Exported by pairmill from a dataset whose {MANIFEST} has the recipe digest `{manifest.recipe_digest}`; what is said of tars is of that.*\n"
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{note}{body}".encode()
