"""Verdicts as columns: what a stage's `decide_columns` gives back, and how such columns are put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def reason_column(rows: int, rules: Sequence[tuple[np.ndarray, str]]) -> pa.Array:
    """The reason of the first rule whose mask (bool [N]) holds, null where none does: dictionary [N]."""
    codes = np.full(rows, -1, np.int8)
    for place in range(len(rules) - 1, -1, -1):
        codes = np.where(rules[place][0], np.int8(place), codes)
    return dictionary_column(codes, [str(reason) for _, reason in rules])


def dictionary_column(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    """Texts by their places in `names` (int8 [N], -1 for null)."""
    there = codes >= 0
    buffers = [pa.py_buffer(np.packbits(there, bitorder="little")), pa.py_buffer(codes)]
    indices = pa.Array.from_buffers(pa.int8(), len(codes), buffers, len(codes) - int(np.count_nonzero(there)))
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string()))


def as_floats(column: pa.Array) -> np.ndarray:
    """A column of numbers as float64 [N], NaN where it is null."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    floats = column.cast(pa.float64())
    return as_numbers(floats.fill_null(np.nan) if floats.null_count else floats)


def as_stored(column: pa.Array) -> np.ndarray:
    """A column of numbers as floats [N], NaN where it is null: float32 as it lies in memory, all others as float64."""
    if pa.types.is_float32(column.type) or pa.types.is_float64(column.type):
        return as_numbers(column.fill_null(np.nan) if column.null_count else column)
    return as_floats(column)


def as_numbers(column: pa.Array) -> np.ndarray:
    """A column of numbers without nulls as it lies in memory: `to_numpy` first imports pandas, where there is one."""
    data = np.frombuffer(column.buffers()[1] or b"", column.type.to_pandas_dtype())
    return data[column.offset : column.offset + len(column)]


def rounded(values: np.ndarray, digits: int) -> np.ndarray:
    """`round(value, digits)` of each of float64 [N]: numpy's own rounding, which scales, is left alone where it may differ from Python's."""
    scaled = values * 10.0**digits
    found = np.rint(scaled) / 10.0**digits
    with np.errstate(invalid="ignore"):
        doubtful = np.flatnonzero((np.abs(scaled - np.floor(scaled) - 0.5) < 1e-3) | (np.abs(scaled) > 1e12))
    found[doubtful] = [round(value, digits) for value in values[doubtful].tolist()]
    return found


def rounded_below(values: np.ndarray, digits: int, limit: float) -> np.ndarray:
    """`round(value, digits) < limit` of each of floats [N] (bool [N]): only values near the limit are rounded. NaN is not below."""
    margin = 10.0**-digits + abs(limit) * 1e-6  # more than rounding moves a value, float32's own included
    low, high = limit - margin, limit + margin
    found = values < low
    doubtful = np.flatnonzero((values <= high) & ~found)
    found[doubtful] = rounded(values[doubtful].astype(np.float64), digits) < limit
    return found


def rounded_above(values: np.ndarray, digits: int, limit: float) -> np.ndarray:
    """`round(value, digits) > limit` of each, as `rounded_below`."""
    return rounded_below(-values, digits, -limit)


def is_null(column: pa.Array) -> np.ndarray:
    """bool [N]"""
    if pa.types.is_null(column.type):
        return np.ones(len(column), bool)
    return as_bools(column.is_null()) if column.null_count else np.zeros(len(column), bool)


def is_true(column: pa.Array) -> np.ndarray:
    """bool [N] of a column of booleans: false where it is null."""
    return as_bools(column.fill_null(False) if column.null_count else column)


def as_bools(column: pa.Array) -> np.ndarray:
    """A column of booleans without nulls as bool [N]."""
    bits = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return np.unpackbits(bits, count=column.offset + len(column), bitorder="little")[column.offset :].view(bool)


def codes_of(reasons: pa.Array, names: list[str]) -> np.ndarray:
    """Places in `names` of a column of reasons, -1 where null (int16 [N]); reasons that are not there yet are put at its end."""
    column = reasons if pa.types.is_dictionary(reasons.type) else pc.dictionary_encode(reasons)
    for name in column.dictionary.to_pylist():
        if name is not None and name not in names:
            names.append(name)
    places = np.array([names.index(name) if name is not None else -1 for name in column.dictionary.to_pylist()] + [-1], np.int16)
    indices = column.indices
    found = as_numbers(indices.fill_null(-1) if indices.null_count else indices)
    return places[found]  # -1 takes the last place, which is -1 too
