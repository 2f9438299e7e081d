"""A table of captions for the files of a folder, in the order of the file names: sorted out of core, by DuckDB."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.console import some
from pipeline.errors import RecipeError
from pipeline.registry import nearest
from stages.source.table_files import Malformed, TableFile, as_text, find_files

MEMORY = "1GB"


@dataclass(slots=True)
class Captions:
    """What the table says of one file: its texts in the order of the lines, and the further fields of the first line."""

    path: str
    texts: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    line: int = 0


class CaptionsTable:
    """Lines of a table with a column of file names and one or several of captions (strings, or lists of them)."""

    def __init__(self, paths: Sequence[str], file_column: str, text_columns: Sequence[str], carried: Sequence[str] | None):
        self.files: list[TableFile] = find_files(list(paths), None, {})
        self.file_column = file_column
        self.text_columns = list(text_columns)
        names = self.files[0].schema().names
        asked = {"input.table_file": [file_column], "input.table_text": self.text_columns}
        for option, columns in asked.items():
            for name in columns:
                if name not in names:
                    has = f"{self.files[0].path} has no column {name!r}{nearest(name, names)}; it has {some(names)}"
                    raise RecipeError(f"{option}: {has}: name one with --set {option}=COLUMN")
        own = {file_column, *self.text_columns}
        self.carried = [name for name in names if name not in own and (carried is None or name in carried)]

    def malformed(self) -> Iterator[tuple[str, Malformed]]:
        """(file, line) of every line that is no row."""
        for file in self.files:
            for piece in file.batches(*self._columns(file)):
                if isinstance(piece, list):
                    yield from ((file.path, line) for line in piece)

    def in_order(self, prefix: str) -> Iterator[Captions]:
        """Captions by file, in the order of the names' bytes. `prefix` is taken off names that begin with it, and './' too.

        A line without a file name comes first, as Captions of the path ''.
        """
        with tempfile.TemporaryDirectory(prefix="pairmill-captions-") as folder:
            con = duckdb.connect(str(Path(folder) / "captions.duckdb"), config={"memory_limit": MEMORY, "threads": 2})
            try:
                line = 0
                for file in self.files:
                    for piece in file.batches(*self._columns(file)):
                        if isinstance(piece, pa.RecordBatch) and piece.num_rows:
                            self._insert(con, piece, prefix, line)
                            line += piece.num_rows
                if line:
                    yield from self._grouped(con)
            finally:
                con.close()

    def _columns(self, file: TableFile) -> tuple[list[str], dict[str, pa.DataType]]:
        columns = [self.file_column, *self.text_columns, *self.carried]
        schema = file.schema()
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise RecipeError(f"{file.path}: has no column {missing[0]!r}, and {self.files[0].path} has; it has {some(schema.names)}")
        types = {name: pa.string() if pa.types.is_null(schema.field(name).type) else schema.field(name).type for name in columns}
        return columns, {**types, self.file_column: pa.string()}

    def _insert(self, con: duckdb.DuckDBPyConnection, batch: pa.RecordBatch, prefix: str, line: int) -> None:
        """Texts as lists, and the carried fields as they are, under plain names."""
        names = [_name(value, prefix) for value in batch.column(self.file_column).to_pylist()]
        columns = [batch.column(name).to_pylist() for name in self.text_columns]
        texts = [[text for value in values for text in _texts(value)] for values in zip(*columns, strict=True)]
        lines = pa.array(range(line, line + len(names)), pa.int64())
        table = {"file": pa.array(names, pa.string()), "line": lines, "texts": pa.array(texts, pa.list_(pa.string()))}
        table |= {f"f{place}": batch.column(name) for place, name in enumerate(self.carried)}
        con.register("piece", pa.table(table))
        con.execute("CREATE TABLE IF NOT EXISTS captions AS SELECT * FROM piece LIMIT 0")
        con.execute("INSERT INTO captions SELECT * FROM piece")
        con.unregister("piece")

    def _grouped(self, con: duckdb.DuckDBPyConnection) -> Iterator[Captions]:
        current: Captions | None = None
        for batch in con.sql("SELECT * FROM captions ORDER BY file, line").to_arrow_reader(2_000):
            for row in batch.to_pylist():
                if current is None or row["file"] != current.path or not current.path:
                    if current is not None:
                        yield current
                    fields = {name: row[f"f{place}"] for place, name in enumerate(self.carried)}
                    current = Captions(row["file"], [], fields, row["line"] + 1)
                current.texts += row["texts"]
        if current is not None:
            yield current


def _name(value: Any, prefix: str) -> str:
    name = (as_text(value.decode("utf-8", "replace") if isinstance(value, bytes) else value) or "").strip()
    return name.removeprefix(prefix).removeprefix("./")


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [text for entry in (value if isinstance(value, list) else [value]) if (text := as_text(entry)) is not None]
