"""Row hashes and digests over canonical column values, never over file bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

NULL_HASH = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64 finalizer: spreads every input bit over the 64 output bits. uint64 [N] -> uint64 [N]."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _fixed_width_hashes(array: pa.Array) -> np.ndarray:
    filled = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0)
    values = filled.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f":
        values = values.astype(np.float64) + 0.0  # -0.0 and 0.0 are one value
        values = np.where(np.isnan(values), np.nan, values).view(np.uint64)
    return _mix(values.astype(np.uint64, copy=False))


def _hash_each(digest: Callable[[bytes], int], array: pa.Array) -> np.ndarray:
    values = array.to_pylist()
    if array.null_count:
        values = [b"" if value is None else value for value in values]
    return np.fromiter(map(digest, values), np.uint64, len(values))


def hash_column(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hash of every value of a column, independent of chunking, encoding and platform: uint64 [N].

    Strings and binaries: XXH64 of the bytes. Numbers: their value. Lists and structs: XXH64 of their JSON.
    """
    if array.null_count == len(array):
        return np.full(len(array), NULL_HASH, np.uint64)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if array.null_count == len(array):
        return np.full(len(array), NULL_HASH, np.uint64)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        hashes = _fixed_width_hashes(array)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raw = array.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
        hashes = _hash_each(xxhash.xxh64_intdigest, raw)
    elif pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind):
        hashes = _hash_each(xxhash.xxh64_intdigest, array)
    else:
        digest = xxhash.xxh64_intdigest
        hashes = np.fromiter((digest(canonical_json(v).encode("utf-8", "surrogatepass")) for v in array.to_pylist()), np.uint64, len(array))
    if array.null_count:
        hashes[~array.is_valid().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no white space, bytes as hex."""
    return _ENCODER.encode(value)


def _json_default(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_json_default)


def combine_hashes(columns: list[np.ndarray], rows: int) -> np.ndarray:
    """One hash per row over several columns' hashes; order matters. uint64 [N]."""
    state = np.full(rows, np.uint64(0x243F6A8885A308D3))
    for hashes in columns:
        state = _mix(state ^ hashes)
    return state


def digest_of(*pieces: Any) -> str:
    """Short hex digest (80 bits of SHA-256) of arrays, texts and JSON values, each length-prefixed."""
    state = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            raw = np.ascontiguousarray(piece).tobytes()
        elif isinstance(piece, bytes):
            raw = piece
        else:
            raw = canonical_json(piece).encode("utf-8", "surrogatepass")
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()[:20]


def seeded_fraction(hashes: np.ndarray, seed: int, name: str) -> np.ndarray:
    """A draw in [0, 1) per row from its hash, a seed and the draw's name: float64 [N]."""
    salt = np.uint64(xxhash.xxh64_intdigest(f"{seed}:{name}".encode()))
    return (_mix(hashes ^ salt) >> np.uint64(11)).astype(np.float64) / float(1 << 53)
