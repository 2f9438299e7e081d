"""Types of a table's columns as pairmill carries them, the same over all files of an input."""

from __future__ import annotations

import pyarrow as pa

from stages.source.table_files import UnreadableError


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Large and dictionary forms as their plain ones; nested types as they are."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) else kind


def merged_type(one: pa.DataType, other: pa.DataType, name: str, path: str) -> pa.DataType:
    """A type that holds both: null gives way, numbers widen. Raises UnreadableError otherwise."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other)):
        return pa.float64()
    raise UnreadableError(
        f"{path}: column {name!r} is {other}, and {one} in the files before it; make them agree, or leave it out of input.columns_to_carry"
    )
