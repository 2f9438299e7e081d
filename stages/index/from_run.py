"""The index that a finished run leaves: what it knows of every pair that it kept, from stored columns alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.models import model_identity
from pipeline.run_view import RunView
from pipeline.stage import Vector
from pipeline.store import VALUES
from pipeline.view import flat
from schemas.outcome import Status
from stages.index.files import EMBEDDING, Index, make_index
from stages.index.texts import normalised

_PLAIN = ("raw_sha256", "phash", "phash_quality", "pdq", "pdq_quality")


def index_of_run(run: RunView, name: str, dropped: bool = False, embeddings: bool = False, texts: bool = False) -> Index:
    """Hashes of the URL, bytes and pixels of all rows that were kept; with `dropped` also of those that rules dropped.

    The item is the sample_id in hex. Nothing is decoded: what the recipe's stages did not store is null. Raises RecipeError where embeddings are wanted
    and there are none.
    """
    chain = run.chain
    if embeddings and not chain.has_column(EMBEDDING):
        raise RecipeError(f"{run.root}: no stage of its recipe stores embeddings; leave out --embeddings")
    names = ["sample_id", "url", *(column for column in _PLAIN if chain.has_column(column))]
    names += [EMBEDDING] if embeddings else []
    names += [column for column in ("texts", "text", "alt_text") if texts and chain.has_column(column)][:1]
    tables = [_part(run, part, names, dropped) for part in range(len(run.parts))]
    widest = max((table.schema.field(EMBEDDING).type for table in tables), key=lambda kind: kind.byte_width) if embeddings else None
    tables = [_widened(table, widest) for table in tables]
    return make_index(name, pa.concat_tables(tables), _model(run) if embeddings else None, _trimmed(run))


def _trimmed(run: RunView) -> bool | None:
    """Whether the hashes are of images without their borders; None without hashes."""
    stage = run.chain.nodes[run.chain.find_column("phash").node].stage if run.chain.has_column("phash") else None
    return getattr(stage.params, "trimmed", None) if stage is not None else None


def _part(run: RunView, part: int, names: list[str], dropped: bool) -> pa.Table:
    view = run.view(part)
    status = run.final(view)["status"].to_numpy()
    rows = np.flatnonzero((status == Status.KEPT) | (dropped & (status == Status.DROPPED)))
    found = run.read(view, names, rows)
    columns: dict[str, Any] = {"item": pa.array([value.hex() for value in found["sample_id"].to_pylist()], pa.string())}
    columns["url_sha256"] = pa.array([hashlib.sha256(url.encode()).digest() if url else None for url in found["url"].to_pylist()], pa.binary(32))
    columns |= {name: flat(found[name]) for name in names if name in (*_PLAIN, EMBEDDING)}
    for name in names:
        if name in ("texts", "text", "alt_text"):
            columns["texts"] = pa.array([_texts(value) for value in found[name].to_pylist()], pa.list_(pa.string()))
    return pa.table(columns)


def _texts(value: Any) -> list[str] | None:
    entries = [value] if isinstance(value, str) else [entry["text"] for entry in value or ()]
    return sorted({plain for text in entries if (plain := normalised(text))}) or None


def _widened(table: pa.Table, kind: pa.DataType | None) -> pa.Table:
    """A part without any vector has vectors of width 0."""
    if kind is None or table.schema.field(EMBEDDING).type == kind:
        return table
    return table.set_column(table.column_names.index(EMBEDDING), EMBEDDING, pa.nulls(table.num_rows, kind))


def _model(run: RunView) -> dict[str, Any]:
    """Identity and digest of the model that made the embeddings."""
    node = run.chain.nodes[run.chain.find_column(EMBEDDING).node]
    assert node.stage is not None and isinstance(node.writes[EMBEDDING], Vector)
    records = [run.store.record(VALUES, node.name, part) for part in range(len(run.parts))]
    digests = sorted({str(record.info["weights"]) for record in records if record is not None and "weights" in record.info})
    spec = run.chain.recipe.models.get(node.stage.model_name or "")
    return {"identity": digest_of(model_identity(spec)) if spec else "", "digest": ", ".join(digests)}
