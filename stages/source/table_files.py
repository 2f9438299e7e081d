"""Table files read as streams of record batches: Parquet, CSV, TSV, JSON lines, compressed or not, local or remote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.errors import RecipeError
from schemas.columns import CORE_BY_NAME

BLOCK_BYTES: Final = 8 << 20
BATCH_ROWS: Final = 10_000
SAMPLE_LINES: Final = 10_000  # JSON lines that tell the column types
MAX_MALFORMED: Final = 1_000  # malformed lines of one file; more of them mean that the file is no such table
EDGE_BYTES: Final = 64 << 10

FORMATS: Final = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
COMPRESSIONS: Final = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
# Names that the machine gives a meaning to beside the core columns.
RESERVED: Final = frozenset({"part", "row", "image", "failure", "failure_detail", "stage", "status", "reason", "detail", "key"})
BARE_LIST: Final = "--set input.format=csv --set 'input.column_names=[url]' --set input.text=null"
TYPES: Final = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


class UnreadableError(RecipeError):
    """A file of the input cannot be read as what it is said to be."""


@dataclass(frozen=True)
class Malformed:
    """A line that is no row: its text as found and what is wrong with it."""

    line: str
    problem: str


@dataclass
class TableFile:
    """One file of the input. `as_bytes`: columns read as raw bytes from CSV, so that bad UTF-8 costs one row."""

    path: str
    format: str
    compression: str | None
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def schema(self) -> pa.Schema:
        """Columns and types: a Parquet file's own, else as told by the first block. Raises UnreadableError."""
        with self._named_errors():
            if self.format == "parquet":
                with self._opened() as file:
                    return pq.ParquetFile(file).schema_arrow
            if self.format == "jsonl":
                return self._json_schema()
            with self._opened() as file:
                schema = self._csv_reader(file, {}, []).schema
            _ = schema.names  # decoded here, where an error names the file
            return schema

    def batches(
        self, columns: list[str], types: Mapping[str, pa.DataType]
    ) -> Iterator[pa.RecordBatch | list[Malformed]]:
        """The rows, with `columns` of these types, in order; malformed lines as lists of their own, never left out."""
        with self._named_errors():
            if self.format == "parquet":
                yield from self._parquet_batches(columns, types)
            elif self.format == "jsonl":
                yield from self._json_batches(columns, types)
            else:
                yield from self._csv_batches(columns, types)

    def edges_digest(self) -> str:
        """Digest of the first and last 64 KB: a Parquet file's footer lies there, with row counts and statistics."""
        with self._named_errors():
            return edges_digest(self.path, self.size)

    def _line(self, number: int) -> str:
        """Which line (from 1, the header among them). The file's name without its folder: rejected rows depend on no place."""
        return f"{self.path.rsplit('/', 1)[-1]} line {number}: "

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except RecipeError:
            raise
        except (OSError, EOFError, pa.ArrowException, UnicodeError) as error:
            raise UnreadableError(
                f"{self.path}: cannot be read as {self.format}: {error}{_advice(error, self.format)}"
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with fsspec.open(self.path, "rb") as file:
            if self.compression is None:
                yield file
            else:
                with pa.CompressedInputStream(pa.PythonFile(file, "r"), self.compression) as stream:
                    yield stream

    def _parquet_batches(self, columns: list[str], types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        with self._opened() as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                arrays = [_cast(batch.column(name), types[name]) for name in columns]
                yield pa.RecordBatch.from_arrays(arrays, names=columns)

    def _csv_reader(
        self, file: Any, types: Mapping[str, pa.DataType], malformed: list[Malformed]
    ) -> pa_csv.CSVStreamingReader:
        def keep(row: pa_csv.InvalidRow) -> str:
            place = self._line(row.number) if row.number else ""
            fields = "1 field" if row.actual_columns == 1 else f"{row.actual_columns} fields"
            malformed.append(Malformed(row.text, f"{place}{fields}, expected {row.expected_columns}"))
            if len(malformed) > MAX_MALFORMED:
                return "error"
            return "skip"

        names = self.options.get("column_names")
        as_bytes = {name: pa.binary() for name in self.options.get("as_bytes", ())}
        given = {name: TYPES[kind] for name, kind in self.options.get("column_types", {}).items()}
        return pa_csv.open_csv(
            file,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names or None),
            parse_options=pa_csv.ParseOptions(
                delimiter=self.options.get("delimiter") or ("\t" if self.format == "tsv" else ","),
                quote_char='"' if self.options.get("quoted", True) else False,
                newlines_in_values=bool(self.options.get("quoted", True)),
                invalid_row_handler=keep,
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={**types, **given, **as_bytes},
                include_columns=list(types) or None,
                strings_can_be_null=False,
            ),
        )

    def _csv_batches(
        self, columns: list[str], types: Mapping[str, pa.DataType]
    ) -> Iterator[pa.RecordBatch | list[Malformed]]:
        malformed: list[Malformed] = []
        with self._opened() as file:
            reader = self._csv_reader(file, {name: types[name] for name in columns}, malformed)
            for batch in reader:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)
        if malformed:
            yield malformed

    def _json_schema(self) -> pa.Schema:
        rows = []
        for row in self._json_lines():
            if isinstance(row, dict):
                rows.append(row)
            if len(rows) >= SAMPLE_LINES:
                break
        names = list(dict.fromkeys(name for row in rows for name in row))
        given = {name: TYPES[kind] for name, kind in self.options.get("column_types", {}).items()}
        return pa.schema([(name, given.get(name) or json_type([row.get(name) for row in rows])) for name in names])

    def _json_lines(self) -> Iterator[dict[str, Any] | Malformed]:
        with self._opened() as file:
            buffered, number = b"", 0
            while block := file.read(1 << 20):
                *lines, buffered = (buffered + block).split(b"\n")
                for line in lines:
                    number += 1
                    if line.strip():
                        yield self._parsed(line.strip(), number)
            if buffered.strip():
                yield self._parsed(buffered.strip(), number + 1)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any] | Malformed:
        row = _parse_line(line)
        return row if isinstance(row, dict) else Malformed(row.line, self._line(number) + row.problem)

    def _json_batches(
        self, columns: list[str], types: Mapping[str, pa.DataType]
    ) -> Iterator[pa.RecordBatch | list[Malformed]]:
        rows: list[dict[str, Any]] = []
        bad = 0
        for row in self._json_lines():
            if isinstance(row, dict):
                rows.append(row)
            if rows and (isinstance(row, Malformed) or len(rows) >= BATCH_ROWS):
                yield self._json_batch(rows, columns, types)
                rows = []
            if isinstance(row, Malformed):
                bad += 1
                if bad > MAX_MALFORMED:
                    raise UnreadableError(
                        f"{self.path}: more than {MAX_MALFORMED} lines are no JSON objects, the last: {row.line[:200]!r} ({row.problem})"
                    )
                yield [row]
        if rows:
            yield self._json_batch(rows, columns, types)

    def _json_batch(
        self, rows: list[dict[str, Any]], columns: list[str], types: Mapping[str, pa.DataType]
    ) -> pa.RecordBatch:
        arrays = []
        for name in columns:
            values = [row.get(name) for row in rows]
            if pa.types.is_string(types[name]):
                values = [as_text(value) for value in values]
            try:
                arrays.append(pa.array(values, types[name]))
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise UnreadableError(
                    f"{self.path}: column {name!r} is {types[name]} by its first lines, and later: {error}; "
                    f"say what it is with input.column_types, for example {{{name}: string}}"
                ) from error
        return pa.RecordBatch.from_arrays(arrays, names=columns)


def _advice(error: BaseException, format_name: str) -> str:
    text = str(error)
    if isinstance(error, UnicodeError):
        return "; the names of its columns must be UTF-8: convert it, for example with `iconv -f UTF-16 -t UTF-8 OLD > NEW` (or -f LATIN1)"
    if "conversion error" in text:
        return "; the type was guessed from the first block: say what it is with input.column_types, for example {price: string}"
    if format_name in ("csv", "tsv") and ("column" in text or "straddling" in text):
        return "; check input.delimiter and input.quoted"
    return ""


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Bytes where texts are wanted stay bytes: the source decodes them, so that bad UTF-8 costs one row."""
    if pa.types.is_string(kind) and (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        return column
    return column if column.type.equals(kind) else column.cast(kind)


def as_text(value: Any) -> str | None:
    """A JSON value as text, with lone surrogates (which no UTF-8 file can hold) replaced."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _parse_line(line: bytes) -> dict[str, Any] | Malformed:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Malformed(line.decode("utf-8", "replace"), f"not valid JSON: {error}")
    if isinstance(row, dict):
        return row
    return Malformed(line.decode("utf-8", "replace"), f"a JSON {type(row).__name__}, not an object")


def json_type(values: list[Any]) -> pa.DataType:
    """Arrow type of JSON values; mixed kinds and all-null columns become strings."""
    try:
        kind = pa.array([as_text(value) if isinstance(value, str) else value for value in values]).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError):
        return pa.string()
    return pa.string() if pa.types.is_null(kind) else kind


def edges_digest(path: str, size: int) -> str:
    """Digest of the first and last 64 KB of a file of `size` bytes. Raises what reading raises."""
    digest = hashlib.sha256()
    with fsspec.open(path, "rb") as file:
        digest.update(file.read(EDGE_BYTES))
        if size > EDGE_BYTES:
            file.seek(max(EDGE_BYTES, size - EDGE_BYTES))
            digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()[:20]


def carried_names(columns: Iterable[str]) -> dict[str, str]:
    """Column of the input -> its name in the run: its own, or with the prefix 'input_' where pairmill has that name."""
    named: dict[str, str] = {}
    for name in columns:
        plain = name.replace(".", "_").replace("|", "_").replace("?", "_")
        while plain in CORE_BY_NAME or plain in RESERVED or plain in named.values():
            plain = f"input_{plain}"
        named[name] = plain
    return named


def split_name(path: str) -> tuple[str, str | None]:
    """Format and compression by a file's extensions; format '' where it is unknown."""
    name = path.rsplit("/", 1)[-1].lower()
    compression = None
    for suffix, kind in COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), kind
    dot = name.rfind(".")
    return FORMATS.get(name[dot:] if dot >= 0 else "", ""), compression


def find_files(patterns: list[str], format_name: str | None, options: Mapping[str, Any]) -> list[TableFile]:
    """The files that paths, globs and folders name: in the order given, those of a glob or folder by name.

    Raises RecipeError that names the pattern that matches nothing, or the file whose format is unknown.
    """
    files = []
    for pattern in patterns:
        for path, size in expand(pattern, "input.table", lambda path: bool(split_name(path)[0])):
            kind, compression = split_name(path)
            if not (format_name or kind):
                known = ", ".join(sorted(FORMATS))
                more = "; Arrow tables are read by input.kind=image_table, where they hold the images" if path.endswith((".arrow", ".feather")) else ""
                more = f"; for a list of URLs without texts add {BARE_LIST}" if path.endswith((".txt", ".lst", ".list")) else more
                raise RecipeError(
                    f"input.table: {path}: the extension tells no format ({known}, compressed or not); say it with input.format{more}"
                )
            files.append(TableFile(path, format_name or kind, compression, size, options))
    return files


def expand(pattern: str, option: str, accepts: Callable[[str], bool]) -> list[tuple[str, int]]:
    """(path, bytes) of the files that a path, glob or folder names, by name; of a folder those that `accepts`.

    Raises RecipeError that names the option where there is none.
    """
    try:
        filesystem, inner = fsspec.core.url_to_fs(pattern)
        if any(sign in inner for sign in "*?[") and not filesystem.exists(inner):
            found = sorted(path for path in filesystem.glob(inner) if filesystem.isfile(path))
        elif filesystem.isdir(inner):
            found = sorted(path for path in filesystem.find(inner) if accepts(path))
        else:
            found = [inner] if filesystem.exists(inner) else []
        sizes = [int(filesystem.size(path) or 0) for path in found]
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"{option}: {pattern}: {error}") from error
    if not found:
        raise RecipeError(
            f"{option}: no file matches {pattern!r}; give a path, a glob such as 'data/*', or a list of them"
        )
    return [
        (filesystem.unstrip_protocol(path) if "://" in pattern else path, size)
        for path, size in zip(found, sizes, strict=True)
    ]
