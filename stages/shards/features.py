"""Columns of a dataset as `datasets` of Hugging Face describes them: for the card, and for exported Parquet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.dataset import IMAGE_EXTENSIONS, PLACE_COLUMNS

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def is_listed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def json_type(kind: pa.DataType) -> pa.DataType:
    """Arrow type of a column's values in a sample's JSON record: bytes, times and decimals are text there."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, json_type(field.type)) for field in kind])
    if is_listed(kind):
        return pa.list_(json_type(kind.value_type))
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        return pa.uint64() if kind == pa.uint64() else pa.int64()
    return pa.float64() if pa.types.is_floating(kind) else pa.string()


def feature(kind: pa.DataType) -> dict[str, Any]:
    """A type in the form of the `dataset_info` block of a card (`dtype`, `list`, `struct`)."""
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **feature(field.type)} for field in kind]}
    if is_listed(kind):
        inner = feature(kind.value_type)
        return {"list": inner.get("dtype", inner.get("struct", inner))}
    return {"dtype": {"double": "float64", "float": "float32", "halffloat": "float16"}.get(str(kind), str(kind))}


def tar_features(index: pa.Schema) -> list[dict[str, Any]]:
    """Features of the samples as `datasets` reads them from the tars.

    Without them it takes its types from a shard's first five samples, and stops where these differ in format or a later
    record has a value where all five had none.
    """
    record = pa.struct([(field.name, json_type(field.type)) for field in sorted(index, key=lambda field: field.name) if field.name not in PLACE_COLUMNS])
    images = [{"name": extension, "dtype": "image"} for extension in IMAGE_EXTENSIONS]
    return [
        *images,
        {"name": "txt", "dtype": "string"},
        {"name": "json", **feature(record)},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]
