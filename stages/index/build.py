"""An index made of images and texts at hand: a folder, tars, a file of texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from pipeline.console import some
from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.models import local_model, model_identity
from pipeline.recipe import build_params
from schemas.outcome import Failure, FailureCode
from stages.images.decoders import DecoderLimits, shared_decoders
from stages.images.hashes import has_pdq
from stages.images.local import Place as At
from stages.images.local import is_local, plan_reads, read_places
from stages.index.files import EMBEDDING, Index, make_index
from stages.index.texts import normalised
from stages.source.image_folder import ImageFolder
from stages.source.local_rows import LocalRow, absolute, text_of
from stages.source.table_files import as_text, find_files
from stages.source.webdataset_tars import WebdatasetTars

_CHUNK = 256
_MOST_BYTES = 256 << 20
TARS = (".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.bz2")
_TEXT_COLUMNS = ("text", "texts", "caption", "captions", "alt_text", "question")


def images_of(images: str) -> Iterator[LocalRow]:
    """Rows of a tar, or of a folder: its images, then the samples of the tars in it. Raises RecipeError where nothing is there."""
    is_tar = images.lower().endswith(TARS)
    if not is_tar and is_local(images) and not Path(absolute(images)).is_dir():
        raise RecipeError(f"{images}: no folder of images, and no tar ({', '.join(TARS)}); name one of them")
    if not is_tar:
        yield from ImageFolder(build_params(ImageFolder, {"folder": images}, "index")).rows()
    if is_tar or _holds_tars(Path(absolute(images))):
        yield from WebdatasetTars(build_params(WebdatasetTars, {"tars": images}, "index")).rows()


def _holds_tars(folder: Path) -> bool:
    return folder.is_dir() and any(path.name.lower().endswith(TARS) for path in folder.rglob("*"))


def build_index(
    name: str, images: Iterable[str] = (), texts: Iterable[str] = (), model: dict[str, Any] | None = None, notes: list[str] | None = None
) -> Index:
    """Hash images (with the captions beside them) and texts into an index.

    model: spec of a model that embeds images, as in a recipe's models table. Of an image that cannot be read or decoded only the bytes and the texts stand in
    the index, which `notes` tell; one of which neither is known is left out.
    Raises RecipeError where nothing is left.
    """
    told = notes if notes is not None else []
    loaded = local_model(model) if model else None
    tables = [_table(chunk, loaded, told) for folder in images for chunk in _chunks(images_of(folder))]
    lines = [line for file in texts for line in read_texts(file)]
    if lines:
        tables.append(pa.table({"item": [item for item, _ in lines], "texts": pa.array([[text] for _, text in lines], pa.list_(pa.string()))}))
    tables = [table for table in tables if table.num_rows]
    if not tables:
        raise RecipeError(f"index {name}: no image and no text was found{': ' + told[0] if told else ''}")
    whole = pa.concat_tables(tables, promote_options="permissive")
    facts = {"identity": digest_of(model_identity(model)), "digest": loaded.digest, "width": int(loaded.describe()["embed_dim"])} if model and loaded else {}
    return make_index(name, whole, facts)


def _chunks(rows: Iterator[LocalRow]) -> Iterator[list[LocalRow]]:
    chunk: list[LocalRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _table(rows: list[LocalRow], model: Any, notes: list[str]) -> pa.Table:
    """Items of some rows, in order; those of which nothing is known are left out."""
    decoders, pdq = shared_decoders(DecoderLimits()), has_pdq()
    places = [At(at, row.file, row.offset, row.size) for at, row in enumerate(rows) if row.file and not row.code]
    bodies = {at: data for task in plan_reads(places) for found in read_places(task, _MOST_BYTES) for at, data in found}
    view = _view(model)
    waiting = {
        at: (decoders.indexed(data, pdq), decoders.crop(data, **view) if view else None)
        for at, data in bodies.items() if not isinstance(data, Failure)
    }  # fmt: skip
    items: list[dict[str, Any]] = []
    pixels: list[Any] = []
    for at, row in enumerate(rows):
        body = bodies.get(at) or Failure(row.code or FailureCode.MISSING_IMAGE, row.detail or "no image")
        answers = [one.result() for one in waiting.get(at, ()) if one is not None]
        wrong = next((one for one in (body, *answers) if isinstance(one, Failure)), None)
        item: dict[str, Any] = {} if isinstance(body, Failure) else {"raw_sha256": hashlib.sha256(body).digest()}
        if texts := sorted({text for entry in row.texts if (text := normalised(text_of(entry)))}):
            item["texts"] = texts
        if wrong is not None:
            known = " and ".join(name for name, key in (("its bytes", "raw_sha256"), ("its texts", "texts")) if key in item)
            notes.append(f"{row.path}: {wrong.detail or wrong.code}; {f'known by {known} alone' if known else 'left out'}")
        elif not isinstance(answers[0], Failure):
            item |= answers[0]
        if item:
            items.append({"item": row.path, **item})
            pixels.append(answers[1] if wrong is None and view else None)
    return _with_embeddings(items, pixels, model)


def _view(model: Any) -> dict[str, Any]:
    facts = model.describe() if model else {}
    return {"size": int(facts["image_size"]), "mode": facts["resize_mode"], "filter": facts["interpolation"]} if model else {}


def _with_embeddings(items: list[dict[str, Any]], pixels: list[Any], model: Any) -> pa.Table:
    names = dict.fromkeys(name for item in items for name in item) or ["item"]
    table = pa.table({name: pa.array([item.get(name) for item in items], None if items else pa.string()) for name in names})
    if not model or not items:
        return table
    seen = [one for one in pixels if one is not None]
    width = int(model.describe()["embed_dim"]) * 2
    found = iter(model.submit("embed", {"images": np.stack(seen), "texts": []}).result()["image"].astype(np.float16) if seen else ())
    return table.append_column(EMBEDDING, pa.array([None if one is None else next(found).tobytes() for one in pixels], pa.binary(width)))


def read_texts(file: str) -> Iterator[tuple[str, str]]:
    """(item, normalised text) of a file, gzipped or not: lines of a .txt; texts of a .json, such as COCO's captions, wherever they stand in it; of a table
    (Parquet, CSV, TSV, JSON lines) its columns with texts. The item is <file>:<line>, of a .json <file>:<number of the text>."""
    path, name = absolute(file), file.rsplit("/", 1)[-1]
    kind = name.lower().removesuffix(".gz").rpartition(".")[2]
    document = _document(path) if kind == "json" else None
    found = _lines(path) if kind == "txt" else _cells(path) if document is None else enumerate(_texts_in(document), 1)
    return ((f"{name}:{line}", plain) for line, text in found if (plain := normalised(text)))


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with fsspec.open(path, "rt", encoding="utf-8-sig", errors="replace", compression="infer") as file:
        yield from enumerate(file, 1)


def _document(path: str) -> Any:
    """The list or mapping that a file holds as a whole; None for JSON lines."""
    with fsspec.open(path, "rt", encoding="utf-8-sig", errors="replace", compression="infer") as file:
        try:
            return json.load(file)
        except ValueError:
            return None


def _texts_in(value: Any, named: bool = True) -> Iterator[str]:
    """Texts of a JSON document in its order: those under the keys that captions have, and those of plain lists."""
    if isinstance(value, str) and named:
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _texts_in(entry, named)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _texts_in(entry, key in (*_TEXT_COLUMNS, "raw"))


def _cells(path: str) -> Iterator[tuple[int, str]]:
    line = 0
    for file in find_files([path], None, {}):
        schema = file.schema()
        columns = [name for name in _TEXT_COLUMNS if name in schema.names]
        if not columns:
            raise RecipeError(f"{path}: none of the columns {', '.join(_TEXT_COLUMNS)}; it has {some(schema.names)}")
        for piece in file.batches(columns, {name: schema.field(name).type for name in columns}):
            if isinstance(piece, list):
                continue
            for row in piece.to_pylist():
                line += 1
                cells = [entry for value in row.values() for entry in (value if isinstance(value, list) else [value])]
                yield from ((line, text) for cell in cells if (text := as_text(cell)))
