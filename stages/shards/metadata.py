"""Checks of what stands beside the shards for other readers: croissant.json, `.nv-meta`, the offsets of the samples."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import parquet_source
from pipeline.storage import Place
from schemas.dataset import CROISSANT, Manifest
from stages.shards.croissant import check_croissant
from stages.shards.energon import energon_files, tar_offsets


def metadata_problems(folder: Place, manifest: Manifest) -> list[tuple[str, str]]:
    """(file, what is wrong) of the metadata files; a file that is not there at all is told by its digest's check.

    A dataset written before there were such files has none, and its manifest lists none.
    """
    problems: list[tuple[Place, str]] = []
    if CROISSANT in manifest.files:
        problems += _of_file(folder / CROISSANT, lambda data: _croissant(data, folder, manifest))
    for name, expected in energon_files(manifest.splits).items():
        if name in manifest.files:
            problems += _of_file(folder / name, lambda data, due=expected: [] if data == due else ["its shards and counts are not those of the manifest"])
    for shard in manifest.shards():
        if shard.offsets and (folder / shard.index).is_file():
            problems += _of_file(folder / shard.offsets, lambda data, shard=shard: _offsets(data, folder / shard.index, shard.tar_bytes))
    return [(path.relative_to(folder).as_posix(), what) for path, what in problems]


def _of_file(path: Place, check: Callable[[bytes], list[str]]) -> list[tuple[Place, str]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [(path, what) for what in check(data)]


def _croissant(data: bytes, folder: Place, manifest: Manifest) -> list[str]:
    try:
        found = json.loads(data)
    except ValueError as error:
        return [f"it is not JSON: {error}"]
    first = next((folder / shard.index for shard in manifest.shards()), None)
    return check_croissant(found, manifest, pq.read_schema(parquet_source(first)).names if first is not None and first.is_file() else [])


def _offsets(data: bytes, index: Place, tar_bytes: int) -> list[str]:
    try:
        images = pq.read_table(parquet_source(index), columns=["offset"])["offset"].to_pylist()
    except (OSError, KeyError, pa.ArrowInvalid):
        return []  # told where the index itself is checked
    return [] if data == tar_offsets(images, tar_bytes) else ["its offsets are not those of the index"]
