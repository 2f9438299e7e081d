"""Rows of a run as tables of the dataset: gathered from their parts, as index rows, as JSON records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.run_view import RunView
from pipeline.view import PartView, flat
from schemas.sample import TEXTS, make_text
from stages.shards.texts import has_words

_JSON_ROWS = 512


class PartReader:
    """Views of parts, the last one kept: memory is bounded by a part."""

    def __init__(self, run: RunView):
        self.run = run
        self._view: PartView | None = None

    def view(self, part: int) -> PartView:
        if self._view is None or self._view.part != part:
            self._view = None  # free the old columns before the new ones are read
            self._view = self.run.view(part)
        return self._view

    def read(self, columns: dict[str, str], part: int, rows: np.ndarray) -> pa.Table:
        """Columns (name -> full name in the chain) of some rows of a part."""
        table = self.run.read(self.view(part), list(dict.fromkeys(columns.values())), rows)
        return pa.table({name: table[full] for name, full in columns.items()})

    def gather(self, columns: dict[str, str], parts: np.ndarray, rows: np.ndarray) -> pa.Table:
        """Columns of rows of several parts, in the order given (part and place in it: int64 [N] each)."""
        pieces, places = [], []
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            places.append(here)
            pieces.append(self.read(columns, int(part), rows[here]))
        order = np.argsort(np.concatenate(places), kind="stable")
        table = pa.table({name: _joined([flat(piece[name]) for piece in pieces]) for name in columns})
        return table if (order[:-1] < order[1:]).all() else table.take(pa.array(order))


def _joined(arrays: list[pa.Array]) -> pa.Array:
    """One array of several; vectors of parts that have none (width 0) get the width of the others."""
    widest = max((a.type for a in arrays), key=lambda t: t.byte_width if pa.types.is_fixed_size_binary(t) else 0)
    return pa.concat_arrays([a if a.type == widest else pa.nulls(len(a), widest) for a in arrays])


def keys_of(sample_ids: pa.Array) -> pa.Array:
    """binary(16) ids as keys (hex)."""
    return pa.array([value.hex() for value in sample_ids.to_pylist()], pa.string())


def caption_of(columns: list[pa.Array]) -> pa.Array:
    """The first text that is neither null nor blank; else the first that is not null, '' where all are."""
    told = [pc.if_else(has_words(column), column, pa.scalar(None, pa.string())) for column in columns]
    return pc.coalesce(*told, *columns, pa.scalar("", pa.string()))


def texts_of(column: pa.Array | None, alt_texts: pa.Array, keys: pa.Array) -> pa.Array:
    """The TEXTS column, made from the alt-text where no stage makes one."""
    if column is not None:
        return column.cast(TEXTS)
    pairs = zip(alt_texts.to_pylist(), keys.to_pylist(), strict=True)
    return pa.array([[make_text(text or "", source=key)] for text, key in pairs], TEXTS)


def records(table: pa.Table) -> Iterator[bytes]:
    """Each row as canonical JSON: keys sorted, UTF-8, bytes as hex, float32 by its shortest digits, NaN as null."""
    ready = pa.table({name: json_floats(flat(table[name])) for name in table.column_names})
    encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=plain_value).encode
    for start in range(0, ready.num_rows, _JSON_ROWS):
        for row in ready.slice(start, _JSON_ROWS).to_pylist():
            yield encode(row).encode()


def plain_value(value: Any) -> str:
    """What JSON has no form for: bytes as hex, times and decimals as text."""
    return value.hex() if isinstance(value, bytes) else str(value)


def json_floats(array: pa.Array) -> pa.Array:
    """float16 and float32 as the float64 with their shortest digits (0.3 stays 0.3), NaN and infinities as null; nested too.

    The array must not be a slice.
    """
    kind = array.type
    if not _has_floats(kind):
        return array
    if pa.types.is_floating(kind):
        if kind != pa.float64():
            array = array.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
        return pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float64()))
    if pa.types.is_struct(kind):
        fields = [json_floats(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(fields, [field.name for field in kind], mask=array.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return type(array).from_arrays(array.offsets, json_floats(array.values), mask=array.is_null())
    return json_floats(array.cast(pa.list_(kind.value_type)))  # fixed-size lists


def _has_floats(kind: pa.DataType) -> bool:
    if pa.types.is_floating(kind):
        return True
    if pa.types.is_struct(kind):
        return any(_has_floats(field.type) for field in kind)
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) and _has_floats(kind.value_type)
