"""Lists of ids as they are passed around: text files, Parquet, and DataComp's .npy files of 128-bit uids."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    import duckdb

BATCH: Final = 1_000_000
PAIR: Final = np.dtype("u8,u8")
ID_COLUMNS: Final = ("sample_id", "uid")


def load_ids(con: duckdb.DuckDBPyConnection, path: str, table: str) -> None:
    """Make a temporary table with one column `id`: ids in lower case, each once. Streamed, never whole in memory.

    By extension: .parquet (column sample_id, else uid; text, or binary read as hex); .npy: DataComp's subset files, a
    structured array of dtype 'u8,u8', one pair per uid: the number of its first 16 hex digits, then of its last 16;
    anything else: text, one id per line, blank lines and lines starting with '#' left out, .gz and the like unpacked.
    Raises RecipeError with the file and the reason.
    """
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table}_all (id VARCHAR)")
    try:
        for ids in _batches(path):
            con.register("ids_arrow", pa.table({"id": ids}))
            con.execute(f"INSERT INTO {table}_all SELECT lower(trim(id)) FROM ids_arrow WHERE trim(id) <> ''")
            con.unregister("ids_arrow")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RecipeError(f"select.ids_file: cannot read {path}: {error}") from error
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT DISTINCT id FROM {table}_all")
    con.execute(f"DROP TABLE {table}_all")


def _batches(path: str) -> Iterator[pa.Array]:
    if path.endswith(".parquet"):
        return _from_parquet(path)
    return _from_npy(path) if path.endswith(".npy") else _from_text(path)


def _from_text(path: str) -> Iterator[pa.Array]:
    with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
        lines: list[str] = []
        for line in file:
            if not line.startswith("#"):
                lines.append(line)
            if len(lines) >= BATCH:
                yield pa.array([one.strip() for one in lines], pa.string())
                lines = []
        yield pa.array([one.strip() for one in lines], pa.string())


def _from_parquet(path: str) -> Iterator[pa.Array]:
    with fsspec.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        column = next((name for name in ID_COLUMNS if name in names), None)
        if column is None:
            near = get_close_matches("sample_id", names, 1, 0.5)
            hint = f" (did you mean to rename {near[0]!r}?)" if near else ""
            raise RecipeError(
                f"select.ids_file: {path} has no column sample_id or uid{hint}; it has {', '.join(names)}"
            )
        for batch in parquet.iter_batches(BATCH, columns=[column]):
            values = batch.column(0)
            if pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
                yield pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())
            else:
                yield values.cast(pa.string())


def _from_npy(path: str) -> Iterator[pa.Array]:
    with fsspec.open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.fields is None or len(shape) != 1 or [dtype[i] for i in range(len(dtype))] != [np.dtype("u8")] * 2:
            raise ValueError(f"expected a list of dtype 'u8,u8' (DataComp's pairs), found {dtype} of shape {shape}")
        for start in range(0, shape[0], BATCH):
            count = min(BATCH, shape[0] - start)
            raw = file.read(count * PAIR.itemsize)
            if len(raw) != count * PAIR.itemsize:
                raise ValueError(f"the file ends after {start + len(raw) // PAIR.itemsize} of {shape[0]} ids")
            pairs = np.frombuffer(raw, dtype).astype(PAIR)
            yield pa.array([f"{high:016x}{low:016x}" for high, low in pairs.tolist()], pa.string())
