"""Files of the dataset as they are made: index, embeddings and rejected rows, under names that hold their inputs' digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.digests import digest_of, hash_column
from pipeline.files import commit_bytes, read_metadata
from pipeline.storage import Place
from schemas.dataset import FOOTER_KEY

_ROWS_PER_GROUP = 1000  # a reader of a few rows decodes little
_LAYOUT = 1  # raise when the bytes made from equal inputs change

TAR, INDEX, EMBEDDINGS = ".tar", ".parquet", ".embeddings.parquet"


@dataclass(frozen=True)
class Footer:
    """What the footer of an index or rejected file says. `inputs`: digest of all that decides the bytes of the unit.

    For an index, tar and embeddings are those that it was made with ('' and 0 otherwise).
    """

    kind: str
    inputs: str
    group: int
    tar_bytes: int = 0
    tar_sha256: str = ""
    embeddings_sha256: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()


def read_footer(path: Place) -> Footer | None:
    """Footer of a file of the dataset; None where it is missing, damaged or not pairmill's."""
    try:
        raw = (read_metadata(path).metadata or {}).get(FOOTER_KEY)
        return None if raw is None else Footer(**json.loads(raw))
    except (OSError, pa.ArrowInvalid, TypeError, ValueError):
        return None


def read_footers(paths: Sequence[Place], threads: int = 16) -> dict[Place, Footer]:
    """Footers of many files, read with many threads; files without one are left out."""
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(read_footer, paths)
    return {path: footer for path, footer in zip(paths, found, strict=True) if footer is not None}


def inputs_digest(kind: str, group: int, table: pa.Table) -> str:
    """Digest of a table's names, types and values: equal inputs give equal files."""
    pieces: list[Any] = [_LAYOUT, kind, group]
    for name in table.column_names:
        pieces += [name, str(table[name].type), hash_column(table[name])]
    return digest_of(*pieces)


def parquet(table: pa.Table, footer: Footer | None, compression: str = "zstd") -> memoryview:
    """A Parquet file as bytes, with page index and small row groups."""
    if footer is not None:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), FOOTER_KEY: footer.to_bytes()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, row_group_size=_ROWS_PER_GROUP, write_page_index=True, store_schema=True)
    return memoryview(sink.getvalue())


def commit_parquet(path: Place, table: pa.Table, footer: Footer | None, guard: Callable[[], None], compression: str = "zstd") -> str:
    """Commit a Parquet file; returns its SHA-256 in hex."""
    data = parquet(table, footer, compression)
    commit_bytes(path, data, guard)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Place) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
