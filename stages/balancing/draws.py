"""Seeded draws by hash: a row's number is a function of seed, rule and sample_id, never of its place or of the cut into parts."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa

_UNIT = 2.0**-53
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_hash(seed: str, *columns: str) -> str:
    """SQL of a row's 64 bits: of the seed, sample_id, and further columns of text (SQL)."""
    parts = [f"'{seed.replace(chr(39), chr(39) * 2)}:'", "hex(sample_id)", *(f"':' || {column}" for column in columns)]
    return f"md5_number_lower({' || '.join(parts)})"


def uniform_sql(bits: str) -> str:
    """SQL of a number in [0, 1) from SQL of 64 bits."""
    return f"(({bits}) >> 11) * {_UNIT!r}"


def evaluate(sql: str, **columns: pa.Array) -> pa.Array:
    """Values of an SQL expression over columns of one length, in the order of the rows: what the rules ask in their queries, asked of arrays."""
    with duckdb.connect() as con:
        con.register("incoming", pa.table(columns))
        told = con.sql(f"SELECT {sql} AS told FROM incoming").to_arrow_table()["told"].combine_chunks()
    return pa.concat_arrays(told.chunks) if isinstance(told, pa.ChunkedArray) else told


def uniform(rows: np.ndarray, things: np.ndarray) -> np.ndarray:
    """Independent numbers in [0, 1), float64, from the bits of a row and of a thing it is tossed for (both uint64, of one shape).

    The bits are mixed by SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        bits = rows ^ mixed(things)
        return (mixed(bits) >> np.uint64(11)) * _UNIT


def mixed(bits: np.ndarray) -> np.ndarray:
    """SplitMix64 of uint64 [N]."""
    with np.errstate(over="ignore"):
        z = bits + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
