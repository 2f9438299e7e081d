"""What is done with index files: list them, join several, take items out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.errors import RecipeError
from pipeline.files import remove_files
from pipeline.storage import Place
from stages.index.files import EMBEDDING, SUFFIX, Index, index_folder, is_index, make_index, read_facts, read_index, write_index


def listed(folder: Place | None = None, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """Facts of the indexes in a folder (default: the user's), with their paths; files that cannot be read as one are told in `notes`."""
    place = folder or index_folder()
    found = []
    for path in sorted(place.glob(f"*{SUFFIX}"), key=str):
        try:
            found.append({"path": str(path), **asdict(read_facts(path))})
        except RecipeError as error:
            (notes if notes is not None else []).append(str(error))
    return found


def merged(name: str, indexes: Iterable[Index]) -> Index:
    """All items of several indexes, equal lines once. Raises RecipeError where embeddings are of different models."""
    given = list(indexes)
    models = [one.facts.model for one in given if one.facts.model]
    if any(model["identity"] != models[0]["identity"] for model in models):
        raise RecipeError(f"index {name}: the embeddings of the indexes are of different models; build them again with one, or without")
    trimmed = {one.facts.trimmed for one in given if one.facts.counts.get("phash") and one.facts.trimmed is not None}
    if len(trimmed) > 1:
        raise RecipeError(f"index {name}: some hashes are of trimmed images and some are not (image_hash.trimmed of their runs); merge those of one kind")
    tables = [one.table for one in given]
    if models:
        kind = next(table.schema.field(EMBEDDING).type for table in tables if EMBEDDING in table.column_names)
        nothing = [table if EMBEDDING in table.column_names else table.append_column(EMBEDDING, pa.nulls(table.num_rows, kind)) for table in tables]
        tables = nothing
    return make_index(name, pa.concat_tables(tables), models[0] if models else None, next(iter(trimmed), None))


def remove_index(path: Place) -> None:
    """Remove an index file, of any version, or a damaged one that has the name of one. Raises RecipeError for another file."""
    if not path.name.endswith(SUFFIX) and not is_index(path):
        read_facts(path)
    remove_files([path])


def remove_items(path: Place, matches: Callable[[dict[str, Any]], bool]) -> int:
    """Take out of an index the items for which `matches` holds (item, url_sha256, raw_sha256); returns how many. The file is replaced in one step."""
    index = read_index(path)
    keys = index.table.select(["item", "url_sha256", "raw_sha256"]).to_pylist()
    keep = [not matches(key) for key in keys]
    removed = len(keep) - sum(keep)
    if removed:
        write_index(make_index(index.facts.name, index.table.filter(pa.array(keep, pa.bool_())), index.facts.model, index.facts.trimmed), path)
    return removed
