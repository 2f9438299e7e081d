"""url_table: rows out of tables of image URLs with texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline import stage as machine
from pipeline.console import some
from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.registry import nearest
from pipeline.stage import Source
from schemas.outcome import FailureCode, cap_detail
from schemas.sample import SOURCE_COLUMNS, cap_text, sample_id
from stages.images.table_cells import image_columns
from stages.source.column_types import merged_type, plain_type
from stages.source.table_files import BARE_LIST, Malformed, TableFile, carried_names, find_files


class Params(machine.Params):
    """Where the table is and what its columns are called."""

    table: str | tuple[str, ...] = Field(
        description="path, glob, folder or list of them, local or remote (s3://, gs://): Parquet, CSV, TSV, JSON lines"
    )
    url: str = Field("url", description="name of the column with the image's URL")
    text: str | None = Field("alt_text", description="name of the column with the text; null for a table without texts")
    columns_to_carry: tuple[str, ...] | None = Field(
        None, description="further columns to carry through to shards and index; default: all"
    )
    format: Literal["parquet", "csv", "tsv", "jsonl"] | None = Field(
        None, description="format of the files; default: by extension"
    )
    delimiter: str | None = Field(
        None, description="CSV and TSV: character between fields; default: comma, tab", min_length=1, max_length=1
    )
    quoted: bool = Field(
        True, description='CSV and TSV: fields may stand in double quotes; false where a " is an ordinary character'
    )
    column_names: tuple[str, ...] | None = Field(
        None, description="CSV and TSV without a header line: the names of the columns"
    )
    column_types: dict[str, Literal["string", "int", "float", "bool"]] = Field(
        {}, description="CSV, TSV and JSON lines: type of a carried column where the first block does not tell it right"
    )


class UrlTable(Source):
    """Yields the rows of the files in order, streamed by row group or block.

    sample_id is made of 'url_table', the URL and the text as read. A row without URL, and a line that is no row (wrong
    number of fields, broken JSON), becomes a failed row (bad_row); malformed CSV lines stand at the end of their file. A null
    text is read as ''. Bytes that are no UTF-8 are replaced in URL and text. Further columns are carried under their own
    names; one that bears the name of a core column of pairmill (width, text, ...) gets the prefix 'input_'.
    """

    name: ClassVar[str] = "url_table"
    Params = Params

    @cached_property
    def files(self) -> list[TableFile]:
        table = self.params.table
        used = [name for name in (self.params.url, self.params.text) if name]
        options = {
            "delimiter": self.params.delimiter,
            "quoted": self.params.quoted,
            "column_names": list(self.params.column_names or ()),
            "column_types": self.params.column_types,
            "as_bytes": used,
        }
        return find_files([table] if isinstance(table, str) else list(table), self.params.format, options)

    def fingerprint(self) -> str:
        """Name, size and edges (first and last 64 KB) of every file, and the options that change rows."""
        files = [[file.path.rsplit("/", 1)[-1], file.size, file.edges_digest()] for file in self.files]
        return digest_of(self.name, self.version, files, self.params.model_dump(mode="json", exclude={"table"}))

    def extra_columns(self) -> dict[str, pa.DataType]:
        return {self._carried[name]: kind for name, kind in self._types.items() if name in self._carried}

    def batches(self) -> Iterator[pa.RecordBatch]:
        columns = list(self._types)
        for file in self.files:
            for piece in file.batches(columns, self._types):
                yield self._malformed_batch(piece) if isinstance(piece, list) else self._batch(piece)

    @cached_property
    def _types(self) -> dict[str, pa.DataType]:
        """Column of the input -> type, the same over all files: URL, text (strings), then those carried."""
        merged: dict[str, pa.DataType] = {}
        for file in self.files:
            schema = file.schema()
            names = self._wanted(file, schema)
            if merged and set(names) != set(merged):
                missing = sorted(set(merged) - set(names)) or sorted(set(names) - set(merged))
                first = self.files[0].path
                raise RecipeError(
                    f"{file.path}: not the columns of {first}: {', '.join(missing)}; name what to carry with input.columns_to_carry"
                )
            for name in names:
                kind = plain_type(schema.field(name).type)
                if name in (self.params.url, self.params.text):
                    if pa.types.is_nested(kind):
                        raise RecipeError(f"input: column {name!r} of {file.path} holds {kind}, not texts")
                    kind = pa.string()
                merged[name] = merged_type(merged.get(name, kind), kind, name, file.path)
        return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in merged.items()}

    def _wanted(self, file: TableFile, schema: pa.Schema) -> list[str]:
        """The columns used of a file. Raises RecipeError with the nearest name where one is missing."""
        names = schema.names
        images = _images(file, schema)
        if self.params.url not in names and images and not nearest(self.params.url, names):
            raise RecipeError(
                f"input.url: {file.path} has no column {self.params.url!r}; it has {some(names)}, of which {images[0]!r} holds bytes: if these are the images, "
                f"read it with input.kind=image_table and input.image={images[0]}, else name a column with --set input.url=COLUMN"
            )
        carried = self.params.columns_to_carry
        asked = {"url": self.params.url, "text": self.params.text}
        required = [(f"input.{option}", name) for option, name in asked.items() if name]
        for option, name in [*required, *(("input.columns_to_carry", name) for name in carried or ())]:
            if name not in names and any("://" in shown for shown in names):
                raise RecipeError(
                    f"{option}: {file.path} has no header: its first line is {some(names)}; name its columns, for example with "
                    f"--set 'input.column_names=[url, alt_text]' (a list of URLs alone: {BARE_LIST})"
                )
            if name not in names:
                raise RecipeError(
                    f"{option}: {file.path} has no column {name!r}{nearest(name, names)}; it has {some(names)}: name one with --set {option}=COLUMN"
                )
        rest = names if carried is None else carried
        return list(dict.fromkeys([*(name for _, name in required), *rest]))

    @cached_property
    def _no_url(self) -> str:
        images = _images(self.files[0], self.files[0].schema())
        return f"the row has no URL; if column {images[0]!r} holds the images, read them with input.kind=image_table" if images else "the row has no URL"

    @cached_property
    def _carried(self) -> dict[str, str]:
        """Column of the input -> its name in the run."""
        return carried_names(name for name in self._types if name not in (self.params.url, self.params.text))

    def _batch(self, read: pa.RecordBatch) -> pa.RecordBatch:
        urls = [_decoded(value) for value in read.column(self.params.url).to_pylist()]
        texts = (
            [_decoded(value) for value in read.column(self.params.text).to_pylist()]
            if self.params.text
            else [""] * len(urls)
        )
        details = [None if url.strip() else self._no_url for url in urls]
        extra = [read.column(name) for name in self._carried]
        return self._assemble(urls, texts, details, extra)

    def _malformed_batch(self, lines: list[Malformed]) -> pa.RecordBatch:
        """Failed rows whose text is the line as found."""
        texts = [_decoded(line.line) for line in lines]
        extra = [pa.nulls(len(lines), kind) for kind in self.extra_columns().values()]
        return self._assemble([""] * len(lines), texts, [cap_detail(line.problem) for line in lines], extra)

    def _assemble(
        self, urls: list[str], texts: list[str], details: list[str | None], extra: list[pa.Array]
    ) -> pa.RecordBatch:
        capped = [cap_text(text) for text in texts]
        ids = [sample_id(self.name, url, text) for url, text in zip(urls, texts, strict=True)]
        core: list[list[Any]] = [ids, urls, [text for text, _ in capped], [cut for _, cut in capped]]
        arrays = [pa.array(values, kind) for values, kind in zip(core, SOURCE_COLUMNS.values(), strict=True)]
        codes = [FailureCode.BAD_ROW.value if detail else None for detail in details]
        arrays += [*extra, pa.array(codes, pa.string()), pa.array(details, pa.string())]
        return pa.RecordBatch.from_arrays(
            arrays, names=[*SOURCE_COLUMNS, *self._carried.values(), "failure", "failure_detail"]
        )


def _images(file: TableFile, schema: pa.Schema) -> list[str]:
    """Columns that may hold images: bytes in Parquet (texts of CSV are read as bytes too)."""
    return image_columns(schema) if file.format == "parquet" else []


def _decoded(value: str | bytes | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value
