"""The run directory: where part files lie, how they are read, and how they are committed. Knows nothing of Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import lock
from pipeline.errors import Fatal
from pipeline.files import commit_bytes, parquet_source, read_metadata, remove_files, sync_folder
from pipeline.secrets import masked
from pipeline.stage import ColumnType, Vector
from pipeline.storage import ObjectPath, Place, place_of
from schemas.outcome import Outcome
from schemas.record import FOOTER_KEY, PartRecord, RunRecord

VALUES, VERDICTS, RESOLVED = "values", "verdicts", "resolved"
BOOKKEEPING = ("outcome", "failure", "failure_detail", "input_digest")


class Store:
    """Paths and commits of one run directory. `token` is the run lock's: a commit is refused once the lock is lost."""

    def __init__(self, root: str | Place, token: str = ""):
        self.root = place_of(root)
        self.token = token

    def guard(self) -> None:
        """Raises LockLost when another run took the directory over."""
        if self.token:
            lock.check(self.root / "lock", self.token)

    def sync(self) -> None:
        """fsync every folder of part files, so that all renames of a finished run survive a power cut."""
        if isinstance(self.root, ObjectPath):
            return
        for kind in (VALUES, VERDICTS, RESOLVED):
            for folder in (self.root / kind).glob("*/"):
                sync_folder(folder)

    def path(self, kind: str, stage: str, part: int) -> Place:
        return self.root / kind / stage / f"part-{part:05d}.parquet"

    def blobs(self, stage: str) -> Place:
        return self.root / "blobs" / stage

    def record(self, kind: str, stage: str, part: int) -> PartRecord | None:
        """Footer of a committed part file, or None where there is none."""
        path = self.path(kind, stage, part)
        try:
            metadata = read_metadata(path)
        except FileNotFoundError:
            return None
        except pa.ArrowInvalid as error:
            raise _damaged(path, error) from error
        return PartRecord.from_metadata(metadata.metadata, str(path))

    def records(self, wanted: Iterable[tuple[str, str, int]], threads: int = 16) -> dict[tuple[str, str, int], PartRecord]:
        """Footers of many part files, read with many threads; files that are not there are left out."""
        keys = list(wanted)
        if isinstance(self.root, ObjectPath):
            keys = self._committed(keys)
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda key: self.record(*key), keys)
        return {key: record for key, record in zip(keys, found, strict=True) if record is not None}

    def _committed(self, keys: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
        """Those of the wanted files that are there, by listing their folders: 1,000 names a request."""
        there = {path for kind, stage in {key[:2] for key in keys} for path in (self.root / kind / stage).glob("part-*.parquet")}
        return [key for key in keys if self.path(*key) in there]

    def read(self, kind: str, stage: str, part: int, columns: list[str] | None = None) -> pa.Table | None:
        """Columns of a part file, or None where it is not committed."""
        path = self.path(kind, stage, part)
        try:
            with pq.ParquetFile(parquet_source(path), memory_map=False) as file:
                return file.read(columns=columns, use_threads=False)
        except FileNotFoundError:
            return None
        except (pa.ArrowInvalid, OSError) as error:
            raise _damaged(path, error) from error

    def read_side(self, stage: str, file_name: str, columns: list[str]) -> pa.Table:
        """Columns of a vectors file, as far as it has them."""
        with pq.ParquetFile(parquet_source(self.root / VALUES / stage / file_name)) as file:
            return file.read(columns=[name for name in columns if name in file.schema_arrow.names], use_threads=False)

    def commit(self, table: pa.Table, record: PartRecord, compression: str = "lz4") -> None:
        """Commit a part file: its footer carries the record."""
        path = self.path(record.kind, record.stage, record.part)
        commit_bytes(path, parquet_bytes(table, record.to_bytes(), compression), self.guard)

    def commit_vectors(self, stage: str, part: int, table: pa.Table, digest: str) -> str:
        """Commit the vectors of a part under a name that holds their digest; returns the file name."""
        name = f"part-{part:05d}.{digest}.vectors.parquet"
        path = self.root / VALUES / stage / name
        if not path.exists():
            commit_bytes(path, parquet_bytes(table, None, "none"), self.guard)
        return name

    def drop_side_files(self, stage: str, part: int, keep: set[str]) -> None:
        """Remove vectors files of a part that its committed values no longer name."""
        found: list[Place] = list((self.root / VALUES / stage).glob(f"part-{part:05d}.*.vectors.parquet"))
        remove_files([path for path in found if path.name not in keep])

    def read_run(self) -> RunRecord | None:
        """run.json, or None for a new directory. Raises ValueError when it is damaged or of another format."""
        try:
            text = (self.root / "run.json").read_text()
        except FileNotFoundError:
            return None
        try:
            return RunRecord.from_json(text)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"run.json is damaged ({error}); delete it and run the same command again: committed parts are kept") from error

    def write_run(self, record: RunRecord) -> None:
        shown = replace(record, recipe=masked(record.recipe))
        commit_bytes(self.root / "run.json", shown.to_json().encode(), self.guard)


def _damaged(path: Place, error: Exception) -> Fatal:
    return Fatal(f"{path}: cannot be read ({error}); delete it and run the same command again: what it held is made anew")


def parquet_bytes(table: pa.Table, record: bytes | None, compression: str) -> memoryview:
    """A Parquet file as bytes; without dictionaries, which cost more than they save in files of one part."""
    if record is not None:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), FOOTER_KEY: record})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, use_dictionary=False, write_statistics=False, store_schema=True)
    return memoryview(sink.getvalue())


def storage_field(name: str, kind: ColumnType, example: pa.Array | None = None) -> pa.Field:
    """Arrow field of a column as stored: vectors become fixed-size binary with dtype and shape in the metadata."""
    if not isinstance(kind, Vector):
        return pa.field(name, kind)
    width = example.type.byte_width if example is not None else 0
    shape = width // np.dtype(kind.dtype).itemsize
    return pa.field(name, pa.binary(width), metadata={"dtype": kind.dtype, "shape": str(shape)})


def to_storage(values: list, kind: ColumnType) -> pa.Array:
    """Python values of one column as Arrow. Raises pa.ArrowException or ValueError when a value has the wrong type."""
    if not isinstance(kind, Vector):
        return pa.array(values, type=kind)
    arrays = [None if v is None else np.asarray(v, dtype=kind.dtype) for v in values]
    sizes = {a.size for a in arrays if a is not None}
    if len(sizes) > 1:
        raise ValueError(f"vectors of different sizes: {sorted(sizes)}")
    return pa.array([None if a is None else a.tobytes() for a in arrays], type=pa.binary(sizes.pop() * np.dtype(kind.dtype).itemsize if sizes else 0))


def as_vectors(column: pa.ChunkedArray | pa.Array, dtype: str = "float16") -> np.ndarray:
    """A vector column as a matrix [N, D]; null rows are zeros."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    width = array.type.byte_width // np.dtype(dtype).itemsize
    if array.null_count:
        zero = b"\0" * array.type.byte_width
        return np.frombuffer(b"".join(v if v is not None else zero for v in array.to_pylist()), dtype).reshape(-1, width)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def empty_values(rows: int) -> dict[str, pa.Array]:
    """Bookkeeping columns of a values file in which no row has been measured."""
    return {
        "outcome": pa.array(np.full(rows, int(Outcome.ABSENT), np.int8)),
        "failure": pa.nulls(rows, pa.string()),
        "failure_detail": pa.nulls(rows, pa.string()),
        "input_digest": pa.array(np.zeros(rows, np.uint64)),
    }
