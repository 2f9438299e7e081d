"""Hashes that the input gives for its images, checked against the bytes as fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from schemas.outcome import Failure, FailureCode, cap_detail

_BYTES = {"sha256": 32, "md5": 16}


def given_hashes(sha256_column: str | None, md5_column: str | None) -> dict[str, str]:
    """Column -> algorithm, for the columns that are named."""
    return {column: name for name, column in (("sha256", sha256_column), ("md5", md5_column)) if column}


def hash_problem(body: bytes, row: Mapping[str, Any], columns: Mapping[str, str]) -> Failure | None:
    """bad_row where a column holds no such hash, hash_mismatch where the bytes have another; None where they agree or none is given."""
    for column, name in columns.items():
        given = row[column]
        if given is None or given == "":
            continue
        wanted = _as_bytes(given)
        if len(wanted) != _BYTES[name]:
            return Failure(FailureCode.BAD_ROW, cap_detail(f"{column}: not a {name} in hex: {given!r}"))
        found = hashlib.new(name, body, usedforsecurity=False).digest()
        if found != wanted:
            return Failure(FailureCode.HASH_MISMATCH, f"{column} says {wanted.hex()}, the fetched bytes have {found.hex()}")
    return None


def _as_bytes(given: Any) -> bytes:
    """Hex text, or the digest itself; b'' where it is neither."""
    if isinstance(given, bytes):
        return given
    try:
        return bytes.fromhex(str(given).strip())
    except ValueError:
        return b""
