"""What the sources of images at hand share: rows of a path, texts and further fields, as record batches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline import stage as machine
from pipeline.stage import Source
from schemas.outcome import FailureCode, cap_detail
from schemas.sample import FILE_COLUMNS, SOURCE_COLUMNS, TEXTS, cap_text, make_text, sample_id
from stages.source.table_files import TYPES, as_text, carried_names, json_type

BATCH_ROWS = 2_000
SAMPLE_ROWS = 1_000  # rows that tell which fields there are, and their types


class LocalParams(machine.Params):
    """Which further fields are carried, and as what."""

    columns_to_carry: tuple[str, ...] | None = Field(
        None, description=f"further fields (of .json, of a table) to carry through to shards and index; default: all that the first {SAMPLE_ROWS:,} rows have"
    )
    column_types: dict[str, Literal["string", "int", "float", "bool"]] = Field(
        {}, description=f"type of a carried field where the first {SAMPLE_ROWS:,} rows do not tell it right"
    )


@dataclass(slots=True)
class LocalRow:
    """One image with its texts, or why it is none. `file`, `offset`, `size`: where its bytes lie, see FILE_COLUMNS.

    texts: strings, or mappings with the keys of TEXTS; the first is the alt-text.
    """

    path: str
    texts: Sequence[str | Mapping[str, Any]] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None
    file: str | None = None
    offset: int | None = None
    size: int | None = None
    code: str | None = None
    detail: str = ""


class LocalSource(Source):
    """Base: a subclass gives `fingerprint` and `rows`. sample_id is made of the source's name, the path and the first text."""

    params: LocalParams
    many_texts: ClassVar[bool] = False  # whether rows have a column `texts`; may be a property

    def rows(self) -> Iterator[LocalRow]:
        """All rows in an order that depends on names alone."""
        raise NotImplementedError

    @cached_property
    def _carried(self) -> dict[str, tuple[str, pa.DataType]]:
        """Field -> its name in the run and its type."""
        sample = [row.fields for row in itertools.islice(self.rows(), SAMPLE_ROWS)]
        found = dict.fromkeys(name for fields in sample for name in fields)
        wanted = list(found) if self.params.columns_to_carry is None else self.params.columns_to_carry
        names = carried_names(wanted)
        types = {name: TYPES[kind] for name, kind in self.params.column_types.items()}
        return {name: (names[name], types.get(name) or _storable(json_type([fields.get(name) for fields in sample]))) for name in wanted}

    def extra_columns(self) -> dict[str, pa.DataType]:
        texts = {"texts": TEXTS} if self.many_texts else {}
        return {**FILE_COLUMNS, **texts, **dict(self._carried.values())}

    def batches(self) -> Iterator[pa.RecordBatch]:
        rows = self.rows()
        while some := list(itertools.islice(rows, BATCH_ROWS)):
            yield self._batch(some)

    def _batch(self, rows: list[LocalRow]) -> pa.RecordBatch:
        carried = [_fitting(rows, name, kind) for name, (_, kind) in self._carried.items()]
        first = [text_of(row.texts[0]) if row.texts else "" for row in rows]
        capped = [cap_text(text) for text in first]
        ids = [sample_id(self.name, row.path, text) for row, text in zip(rows, first, strict=True)]
        columns: list[Any] = [ids, [as_text(row.url) for row in rows], [text for text, _ in capped], [cut for _, cut in capped]]
        arrays = [pa.array(values, kind) for values, kind in zip(columns, SOURCE_COLUMNS.values(), strict=True)]
        places = [[row.path, row.file, row.offset, row.size] for row in rows]
        arrays += [pa.array(values, kind) for values, kind in zip(zip(*places, strict=True), FILE_COLUMNS.values(), strict=True)]
        if self.many_texts:
            arrays.append(pa.array([_entries(row.texts, identifier) for row, identifier in zip(rows, ids, strict=True)], TEXTS))
        failures = [pa.array([row.code for row in rows], pa.string()), pa.array([cap_detail(row.detail) if row.code else None for row in rows], pa.string())]
        names = [*SOURCE_COLUMNS, *self.extra_columns(), "failure", "failure_detail"]
        return pa.RecordBatch.from_arrays([*arrays, *carried, *failures], names=names)


def _storable(kind: pa.DataType) -> pa.DataType:
    """A type that Parquet can hold and that later values fit: text where an inner list or object was empty in all rows."""
    return pa.string() if "null" in str(kind) or "struct<>" in str(kind) else kind


def text_of(entry: str | Mapping[str, Any]) -> str:
    return as_text(entry if isinstance(entry, str) else entry.get("text")) or ""


def _entries(texts: Iterable[str | Mapping[str, Any]], identifier: bytes) -> list[dict[str, Any]]:
    """Entries of TEXTS, each text once and empty ones left out, texts capped like the alt-text."""
    entries: dict[str, dict[str, Any]] = {}
    for entry in texts:
        text = cap_text(text_of(entry))[0]
        if not text.strip() or text in entries:
            continue
        given = {} if isinstance(entry, str) else {name: value for name in ("kind", "model", "prompt") if isinstance(value := entry.get(name), str)}
        entries[text] = make_text(text, **{"source": identifier.hex(), **given})
    return list(entries.values())


def _fitting(rows: list[LocalRow], name: str, kind: pa.DataType) -> pa.Array:
    """A field of all rows. A row whose value is of another type fails (bad_row)."""
    values = [row.fields.get(name) for row in rows]
    if pa.types.is_string(kind):
        values = [as_text(value) for value in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError):
        return pa.array([_fit(row, name, value, kind) for row, value in zip(rows, values, strict=True)], kind)


def _fit(row: LocalRow, name: str, value: Any, kind: pa.DataType) -> Any:
    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError):
        if row.code is None:
            row.code = FailureCode.BAD_ROW
            row.detail = f"field {name!r} is {value!r}, and {kind} in the first rows; if it may be that, say so: input.column_types={{{name}: string}}"
        return None
    return value


def plain_text(data: bytes) -> str:
    """The text of a file: UTF-8, with bytes that are none replaced, without byte order mark and line ends at its end."""
    return data.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")


def lines_of(text: str) -> list[str]:
    """Lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that holds all paths, without a slash at its end."""
    split = [path.split("/")[:-1] for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*split, strict=False))
    return "/".join(names[0] for names in shared)


def absolute(path: str) -> str:
    """A local path as absolute, an URL as it is."""
    return path if "://" in path else os.path.abspath(path)
