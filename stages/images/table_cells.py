"""Tables whose cells are images: Parquet, Arrow IPC files and Arrow streams, read some rows at a time, on disk or through fsspec.

A cell's place is written `<file>#<column>` with the number of its row in the file: bytes in compressed pages have no offset of their own.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

EXTENSIONS = ("parquet", "pq", "arrow", "feather", "ipc")
PIECE_BYTES = 8 << 20  # of images that are held at a time
STREAM_BYTES = 1 << 20  # of a Parquet column that are read at once
MOST_ROWS = 1_000
_ARROW_FILE = b"ARROW1"
_CELL = re.compile(rf"(.*\.(?:{'|'.join(EXTENSIONS)}))#(.*)", re.IGNORECASE | re.DOTALL)

Cell = tuple[int, Any]  # row in the file, and its value: bytes, {'bytes', 'path'} or None


def cell_place(path: str, column: str) -> str:
    """How a row names the file and the column of its image."""
    return f"{path}#{column}"


def split_cell(place: str) -> tuple[str, str | None]:
    """File and column of a place; no column where it is a file alone."""
    found = _CELL.fullmatch(place)
    return (found[1], found[2]) if found else (place, None)


def is_table(place: str) -> bool:
    """Whether a place lies in a table: by the file's name."""
    return split_cell(place)[0].rpartition(".")[2].lower() in EXTENSIONS


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, or a struct with the field `bytes`, as `datasets` of Hugging Face has it."""
    return is_bytes(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type))


def has_paths(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def image_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if holds_images(field.type)]


class OpenTable:
    """One table, opened. Raises OSError or pa.ArrowException where it cannot be read. `schema`: its columns."""

    def __init__(self, path: str, stack: ExitStack):
        self._file = stack.enter_context(_opened(path))
        head = self._file.read(len(_ARROW_FILE))
        self._file.seek(0)
        self._parquet: pq.ParquetFile | None = None
        if head[:4] == b"PAR1":
            # a column is streamed, so that memory does not grow with the row group
            self._parquet = stack.enter_context(pq.ParquetFile(self._file, buffer_size=STREAM_BYTES, pre_buffer=False))
            self.schema: pa.Schema = self._parquet.schema_arrow
            return
        self._whole = head == _ARROW_FILE
        self.schema = self._reader(None).schema

    def batches(self, columns: Sequence[str], image: str = "") -> Iterator[pa.RecordBatch]:
        """All rows with some columns, at most MOST_ROWS at a time. Of the column `image` a batch has its paths, where it has any, and no bytes."""
        kind = self.schema.field(image).type if image else pa.null()
        if self._parquet is None:
            wanted = [*columns, *([image] if has_paths(kind) else [])]
            for batch in self._arrow_batches(wanted):
                for start in range(0, batch.num_rows, MOST_ROWS):
                    yield batch.slice(start, MOST_ROWS)
            return
        wanted = [*columns, *([f"{image}.path"] if has_paths(kind) else [])]
        for group in range(self._parquet.num_row_groups):
            yield from self._parquet.iter_batches(MOST_ROWS, row_groups=[group], columns=wanted, use_threads=False)

    def cells(self, column: str, rows: Sequence[int]) -> Iterator[list[Cell] | Exception]:
        """Cells of rows in rising order, in lists of about PIECE_BYTES; where a row group is damaged, the error, and on with the next."""
        waiting = deque(rows)
        start = 0
        for batches, count in self._groups(column):
            if waiting and count is not None and waiting[0] >= start + count:
                start += count
                continue
            if not waiting:
                return
            at = start
            try:
                for batch in batches:
                    yield from _pieces(batch.column(0), at, waiting)
                    at += batch.num_rows
                    if not waiting or (count is not None and waiting[0] >= start + count):
                        break
            except (OSError, pa.ArrowException) as error:
                if count is None:
                    raise
                while waiting and waiting[0] < start + count:
                    waiting.popleft()
                yield error
            start = at if count is None else start + count
        if waiting:
            raise pa.ArrowInvalid(f"{start} rows, and row {waiting[0]} was wanted: the file was changed since the input was read")

    def _groups(self, column: str) -> Iterator[tuple[Iterator[pa.RecordBatch], int | None]]:
        """What is read for itself: (its batches, its rows); the rows are None where only reading tells them."""
        if self._parquet is None:
            yield self._arrow_batches([column]), None
            return
        leaves = [at for at, name in enumerate(self._leaves()) if name == column or name.startswith(f"{column}.")]
        for group in range(self._parquet.num_row_groups):
            facts = self._parquet.metadata.row_group(group)
            mean = sum(facts.column(at).total_uncompressed_size for at in leaves) / max(1, facts.num_rows)
            rows = int(min(MOST_ROWS, max(1, PIECE_BYTES // max(1.0, mean))))
            yield self._parquet.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False), facts.num_rows

    def _leaves(self) -> list[str]:
        assert self._parquet is not None
        schema = self._parquet.schema
        return [schema.column(at).path for at in range(len(schema))]

    def _reader(self, columns: Sequence[str] | None) -> Any:
        options = None
        if columns:  # an empty list would mean all
            options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name) for name in columns], use_threads=False)
        self._file.seek(0)
        return pa.ipc.open_file(self._file, options=options) if self._whole else pa.ipc.open_stream(self._file, options=options)

    def _arrow_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        reader = self._reader(columns)
        found = map(reader.get_batch, range(reader.num_record_batches)) if self._whole else iter(reader)
        for batch in found:
            yield batch.select(list(columns)) if columns else batch


def _pieces(column: pa.Array, start: int, waiting: deque[int]) -> Iterator[list[Cell]]:
    """Cells of a column that begins with row `start`, taken off `waiting`."""
    piece: list[Cell] = []
    held = 0
    while waiting and waiting[0] < start + len(column):
        row = waiting.popleft()
        value = column[row - start].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        held += len(data or b"")
        piece.append((row, value))
        if held >= PIECE_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


@contextmanager
def opened(path: str) -> Iterator[OpenTable]:
    """A table for reading."""
    with ExitStack() as stack:
        yield OpenTable(path, stack)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A local file is mapped: what is skipped of it is not read."""
    if "://" not in path:
        with pa.memory_map(path) as file:
            yield file
        return
    with fsspec.open(path, "rb") as remote, pa.PythonFile(remote, "r") as file:
        yield file
