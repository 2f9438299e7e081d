"""Digests of files that a recipe names, so that a changed file makes anew what follows from it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import fsspec

from pipeline.errors import RecipeError
from pipeline.reading import known_or


def file_sha256(path: str, where: str, known: Any = "") -> str:
    """First 20 hex digits of a file's SHA-256, read in blocks; kept per size and time while the process lives. `where` names the option in errors.

    Raises RecipeError where the file cannot be read; of a run that is only read `known`, the digest as it was, stands for one that is gone."""
    return known_or(lambda: _digest(path, where), str(known or ""))


def _digest(path: str, where: str) -> str:
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        info = filesystem.info(inner)
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"{where}: cannot read {path}: {error}") from error
    stamp = str(info.get("mtime") or info.get("LastModified") or info.get("ETag") or "")
    return _cached(path, int(info.get("size") or 0), stamp)


@lru_cache(maxsize=32)
def _cached(path: str, size: int, stamp: str) -> str:
    digest = hashlib.sha256()
    with fsspec.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:20]
