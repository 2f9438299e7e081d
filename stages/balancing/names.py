"""Groups and tags of columns in memory: their names as the rules' queries write them, and each row's number of its group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reason_columns import as_numbers, is_null
from stages.balancing.draws import evaluate
from stages.balancing.groups import BATCH, name_sql, shown
from stages.dups.components import distinct
from stages.expression import Expression

Columns = Mapping[str, pa.Array]


def column_names(column: pa.Array, hex_of_bytes: bool) -> pa.Array:
    """Each value as text, null where it is null."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind):
        return column.cast(pa.string())
    blob = hex_of_bytes and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
    return evaluate(name_sql("x", blob), x=column).cast(pa.string())


def column_groups(column: pa.Array, hex_of_bytes: bool, null: str | None) -> tuple[np.ndarray, pa.Array]:
    """Number of each row's group (int32 [N]) and the groups' names. Rows without a value are of the group `null`, of none (-1) where that is None."""
    encoded = pa.DictionaryArray.from_arrays(pa.nulls(len(column), pa.int32()), pa.array([], pa.string()))
    if not pa.types.is_null(column.type):
        encoded = column.dictionary_encode()
    names = pa.concat_arrays([column_names(encoded.dictionary, hex_of_bytes), pa.array([null], pa.string())])
    merged = names.dictionary_encode()  # values may share a name
    number = as_numbers(merged.indices.fill_null(-1)).astype(np.int32)
    return number[as_numbers(encoded.indices.fill_null(len(names) - 1))], merged.dictionary


def expression_names(expression: Expression, columns: Columns) -> Iterator[str | None]:
    """The expression's value of each row as text. Raises RecipeError where kinds of values do not fit."""
    table = pa.table(dict(columns))
    for batch in table.to_batches(BATCH):
        for row in batch.to_pylist():
            value = expression.value(row)
            yield None if value is None else shown(value)


def expression_groups(expression: Expression, columns: Columns) -> np.ndarray:
    """Number of each row's group (int32 [N], -1 for none). An expression over one column is asked once for each of its values."""
    [*names] = columns
    encoded = columns[names[0]].dictionary_encode() if len(names) == 1 and not pa.types.is_null(columns[names[0]].type) else None
    if encoded is not None:
        columns = {names[0]: pa.concat_arrays([encoded.dictionary, pa.nulls(1, encoded.dictionary.type)])}
    numbers: dict[str, int] = {}
    told = (-1 if name is None else numbers.setdefault(name, len(numbers)) for name in expression_names(expression, columns))
    found = np.fromiter(told, np.int32)
    return found if encoded is None else found[as_numbers(encoded.indices.fill_null(len(found) - 1))]


def tagged(column: pa.Array, tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows with some of the tags (rising int64) and the place of the tag in `tags`, each pair once; None for a column of another type than texts, lists of
    texts, and lists of structs with a name."""
    kind, rows, values = column.type, np.arange(len(column)), column
    if pa.types.is_list(kind):
        values = column.flatten()
        rows = np.repeat(rows, as_numbers(pc.list_value_length(column).fill_null(0)))
        kind = kind.value_type
        if pa.types.is_struct(kind) and kind.get_field_index("name") >= 0:
            values = pc.struct_field(values, "name")
            kind = values.type
    if not pa.types.is_string(kind):
        return None
    place = pc.index_in(values, value_set=pa.array(tags, pa.string()))
    there = np.flatnonzero(~is_null(place))
    pairs = distinct(rows[there].astype(np.int64) * len(tags) + as_numbers(place.take(pa.array(there))))
    return pairs // len(tags), pairs % len(tags)
