"""image_table: rows out of tables that hold the image bytes themselves: Parquet, Arrow IPC files and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.console import some
from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.registry import nearest
from stages.images.table_cells import EXTENSIONS, OpenTable, cell_place, has_paths, holds_images, image_columns, is_bytes, is_table, opened
from stages.source.column_types import merged_type, plain_type
from stages.source.local_rows import LocalParams, LocalRow, LocalSource, absolute, common_folder
from stages.source.table_files import TYPES, UnreadableError, carried_names, edges_digest, expand

IMAGE_PATH = "image_path"  # what the table itself calls an image
_ELSEWHERE = "tables of URLs are read by input.kind=url_table, images in files (with a table of captions) by image_folder, in tars by webdataset_tars"


class ImageTableParams(LocalParams):
    """Where the tables are, and which of their columns are image, texts and URL."""

    table: str | tuple[str, ...] = Field(
        description="path, glob, folder or list of them, local or remote (s3://, gs://): Parquet (.parquet, .pq) and Arrow IPC (.arrow, .feather, .ipc), "
        "file or stream"
    )
    image: str = Field("image", description="column with the image: bytes, or a struct of bytes and path as `datasets` of Hugging Face writes it")
    text: str | tuple[str, ...] | None = Field(
        "caption", description="column with the text, or several: strings, lists of strings, or lists of structs with `text`; null: a table without texts"
    )
    url: str | None = Field("url", description="column with the URL that the image came from, where the table has it; null: none")
    columns_to_carry: tuple[str, ...] | None = Field(
        None, description="further columns to carry through to shards and index; default: all but those that hold bytes"
    )


class ImageTable(LocalSource):
    """Yields one row per row of the tables, in the order of the files' names. `path` is <file>/<row>, relative to the folder that all files share.

    Texts and carried columns are read some rows at a time, and images are not; read_images decodes them later, each row group about once.
    A null image is a failed row there (missing_image); a struct that has a path and no bytes is read from beside the table. sample_id is
    made of 'image_table', the path and the first text. What an image is called in the table is carried as `image_path`.
    """

    name: ClassVar[str] = "image_table"
    Params = ImageTableParams
    params: ImageTableParams

    @property
    def many_texts(self) -> bool:  # type: ignore[override]
        return len(self._texts) > 1 or any(_is_list(schema.field(name).type) for schema in self._schemas.values() for name in self._texts)

    @property
    def _texts(self) -> Sequence[str]:
        text = self.params.text
        return () if text is None else (text,) if isinstance(text, str) else text

    @cached_property
    def files(self) -> list[tuple[str, int]]:
        """(path, bytes) of every table. Raises RecipeError for a file that is no table by its name."""
        patterns = [self.params.table] if isinstance(self.params.table, str) else self.params.table
        files = sorted({(absolute(path), size) for pattern in patterns for path, size in expand(pattern, "input.table", is_table)})
        for path, _ in files:
            if not is_table(path):
                known = ", ".join(f".{end}" for end in EXTENSIONS)
                raise RecipeError(f"input.table: {path}: the extension tells no table of images ({known}); {_ELSEWHERE}")
        return files

    @cached_property
    def root(self) -> str:
        """The folder that all files share."""
        return common_folder([path for path, _ in self.files])

    def fingerprint(self) -> str:
        """Name, size and edges (first and last 64 KB) of every file, and the options that change rows."""
        files = [[self._relative(path), size, edges_digest(path, size)] for path, size in self.files]
        return digest_of(self.name, self.version, files, self.params.model_dump(mode="json", exclude={"table"}))

    def rows(self) -> Iterator[LocalRow]:
        self._check()
        for path, _ in self.files:
            with _named_errors(path), opened(path) as table:
                yield from self._of_file(path, table)

    def _relative(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")

    def _of_file(self, path: str, table: OpenTable) -> Iterator[LocalRow]:
        names = table.schema.names
        url = [self.params.url] if self.params.url in names else []
        carried = [name for name in self._carried if name in names]
        paths = IMAGE_PATH in self._carried and IMAGE_PATH not in names and has_paths(table.schema.field(self.params.image).type)
        place, relative, row = cell_place(path, self.params.image), self._relative(path), 0
        for batch in table.batches(list(dict.fromkeys([*self._texts, *url, *carried])), self.params.image if paths else ""):
            columns = {name: batch.column(name).to_pylist() for name in (*self._texts, *url, *carried)}
            if paths:
                columns[IMAGE_PATH] = batch.column(self.params.image).field("path").to_pylist()
            for at in range(batch.num_rows):
                texts = [text for name in self._texts for text in _texts(columns[name][at])]
                found = _plain_text(columns[url[0]][at]) if url else None
                fields = {name: columns[name][at] for name in self._carried if name in columns}
                yield LocalRow(f"{relative}/{row}", texts, fields, url=found or None, file=place, offset=row)
                row += 1

    @cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        """Path -> columns. Raises UnreadableError for a file that is no table."""
        found = {}
        for path, _ in self.files:
            with _named_errors(path), opened(path) as table:
                found[path] = table.schema
        return found

    def _check(self) -> None:
        """Raises RecipeError that names file and column where a table does not have what is asked of it."""
        for path, schema in self._schemas.items():
            self._check_image(path, schema)
            known = {*schema.names, IMAGE_PATH}
            for option, name in [*(("text", name) for name in self._texts), *(("columns_to_carry", name) for name in self.params.columns_to_carry or ())]:
                if name not in (known if option == "columns_to_carry" else schema.names):
                    without = ", or --set input.text=null for a table without texts" if option == "text" else ""
                    raise RecipeError(
                        f"input.{option}: {path} has no column {name!r}{nearest(name, schema.names)}; it has {some(schema.names)}: "
                        f"name one with --set input.{option}=COLUMN{without}"
                    )
            for name in self._texts:
                if not _is_text(schema.field(name).type):
                    raise RecipeError(f"input.text: column {name!r} of {path} holds {schema.field(name).type}, not texts or lists of texts")

    def _check_image(self, path: str, schema: pa.Schema) -> None:
        name, names = self.params.image, schema.names
        others = image_columns(schema)
        if name not in names:
            advice = f"its column {others[0]!r} holds bytes: --set input.image={others[0]}" if others else f"no column holds bytes; {_ELSEWHERE}"
            raise RecipeError(f"input.image: {path} has no column {name!r}{nearest(name, names)}; it has {some(names)}; {advice}")
        kind = schema.field(name).type
        if not holds_images(kind):
            what = "texts" if _is_text(kind) else str(kind)
            advice = f"its column {others[0]!r} holds bytes: --set input.image={others[0]}" if others else _ELSEWHERE
            raise RecipeError(f"input.image: column {name!r} of {path} holds {what}, not bytes (or a struct of bytes and path); {advice}")

    @cached_property
    def _carried(self) -> dict[str, tuple[str, pa.DataType]]:
        """Column -> its name in the run and its type, the same over all files; a column that a file lacks is null in its rows."""
        own = {self.params.image, self.params.url, *self._texts}
        wanted = self.params.columns_to_carry
        types: dict[str, pa.DataType] = {}
        for path, schema in self._schemas.items():
            for field in schema:
                if field.name not in own and (not holds_images(field.type) if wanted is None else field.name in wanted):
                    kind = plain_type(field.type)
                    types[field.name] = merged_type(types.get(field.name, kind), kind, field.name, path)
            if (wanted is None or IMAGE_PATH in wanted) and IMAGE_PATH not in types and has_paths(schema.field(self.params.image).type):
                types[IMAGE_PATH] = pa.string()
        given = {name: TYPES[kind] for name, kind in self.params.column_types.items()}
        names = carried_names(types)
        return {name: (names[name], given.get(name) or (pa.string() if pa.types.is_null(kind) else kind)) for name, kind in types.items()}

    def extra_columns(self) -> dict[str, pa.DataType]:
        self._check()
        return super().extra_columns()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    """Strings, bytes of UTF-8, lists of them, or lists of structs with `text`."""
    if _is_list(kind):
        inner = kind.value_type
        return _is_text(inner) and not _is_list(inner) or bool(pa.types.is_struct(inner) and inner.get_field_index("text") >= 0)
    kind = plain_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_null(kind) or is_bytes(kind))


def _texts(value: Any) -> list[str | Mapping[str, Any]]:
    """Texts of a cell; nulls are left out."""
    entries = value if isinstance(value, list) else [value]
    return [entry if isinstance(entry, dict) else _plain_text(entry) for entry in entries if entry is not None]


def _plain_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UnreadableError(f"{path}: cannot be read as a table: {error}; was it written to its end?") from error
