"""img2dataset_output: rows out of a folder that img2dataset wrote, those that it failed to download among them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from schemas.outcome import FailureCode, cap_detail
from stages.images.img2dataset_engine import IMAGE_COLUMNS, SUCCESS, reason_of
from stages.source.folders import Folder
from stages.source.local_rows import LocalParams, LocalRow, LocalSource, absolute
from stages.source.table_files import edges_digest
from stages.source.tar_reader import Member, Problem, read_tar

_TABLE = re.compile(r"(\d+)\.parquet")


class OutputParams(LocalParams):
    """Where the output is, and which of its columns are text and URL."""

    folder: str = Field(description="img2dataset's output_folder, local or remote: with output_format webdataset, files or parquet")
    caption: str | None = Field("caption", description="column with the caption, which img2dataset calls so; null: none")
    url: str = Field("url", description="column with the URL")


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: `stem` is its number as written; `kind`: webdataset, files or parquet; sizes in bytes."""

    stem: str
    kind: str
    table_size: int
    tar_size: int
    has_stats: bool


class Img2datasetOutput(LocalSource):
    """Yields every row of every shard's Parquet file by key, with the image in the tar, the folder or the Parquet file.

    A row whose status is failed_to_download or failed_to_resize becomes a failed row: img2dataset's message is mapped to
    pairmill's reason (stages/images/img2dataset_engine.py) and kept as detail. `url`, caption and all further columns are carried,
    and so is the original size. A shard that img2dataset did not finish, and rows that its statistics count and its table lacks,
    are failed rows too. Not read: output_format tfrecord and dummy.
    """

    name: ClassVar[str] = "img2dataset_output"
    Params = OutputParams
    params: OutputParams

    @cached_property
    def root(self) -> str:
        return absolute(self.params.folder).rstrip("/")

    @cached_property
    def shards(self) -> list[Shard]:
        """Shards by name. Raises RecipeError where the folder is no output of img2dataset."""
        Folder(self.root, False).check("input.folder")
        filesystem, inner = fsspec.core.url_to_fs(self.root)
        found = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in filesystem.ls(inner, detail=True)}
        stems = [match[1] for name in sorted(found) if (match := _TABLE.fullmatch(name))]
        if not stems:
            raise RecipeError(
                f"input.folder: {self.root} has no table such as 00000.parquet: give img2dataset's output_folder; for tars without tables use webdataset_tars"
            )
        return [self._shard(stem, found) for stem in stems]

    def _shard(self, stem: str, found: dict[str, Any]) -> Shard:
        tar, folder = found.get(f"{stem}.tar"), found.get(stem)
        kind = "webdataset" if tar else "files" if folder and folder["type"] == "directory" else "parquet"
        size = int(found[f"{stem}.parquet"].get("size") or 0)
        return Shard(stem, kind, size, int(tar["size"]) if tar else 0, f"{stem}_stats.json" in found)

    def fingerprint(self) -> str:
        """Name, sizes and edges (first and last 64 KB) of every shard's table, and the options that change rows."""
        files = [[s.stem, s.kind, s.table_size, s.tar_size, edges_digest(self._full(f"{s.stem}.parquet"), s.table_size)] for s in self.shards]
        return digest_of(self.name, self.version, files, self.params.model_dump(mode="json", exclude={"folder"}))

    def rows(self) -> Iterator[LocalRow]:
        for shard in self.shards:
            yield from self._of_shard(shard)

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _of_shard(self, shard: Shard) -> Iterator[LocalRow]:
        """A shard's rows by key: img2dataset writes them in the order in which downloads ended."""
        table_path = self._full(f"{shard.stem}.parquet")
        try:
            table, image = _read_table(table_path)
        except (OSError, EOFError, pa.ArrowException) as error:
            detail = f"{table_path}: {error}: was img2dataset stopped in this shard? Running it again finishes it"
            yield LocalRow(f"{shard.stem}.parquet", code=FailureCode.UNREADABLE, detail=detail)
            return
        missing = {"key", "status", self.params.url} - set(table.column_names)
        if missing or (shard.kind == "parquet" and not image):
            what = f"no column {sorted(missing)[0]!r}" if missing else "neither images nor a tar or folder of them beside it"
            raise RecipeError(f"input.folder: {table_path} has {what}; it has {', '.join(table.column_names)}. Is this img2dataset's output?")
        members, problem = self._members(shard) if shard.kind == "webdataset" else ({}, "")
        records = table.to_pylist()
        for place, record in sorted(enumerate(records), key=lambda pair: (str(pair[1]["key"]), pair[0])):
            yield self._row(shard, record, place, image, members, problem)
        yield from self._unaccounted(shard, len(records))

    def _members(self, shard: Shard) -> tuple[dict[str, Member], str]:
        """Images of a tar by key; and where it breaks, if it does."""
        members: dict[str, Member] = {}
        problem = ""
        for found in read_tar(self._full(f"{shard.stem}.tar"), shard.tar_size, lambda name: 0):
            if isinstance(found, Problem):
                problem = problem or found.detail
                continue
            key, _, extension = found.name.rpartition(".")
            if extension in IMAGE_COLUMNS and not found.problem:
                members.setdefault(key, found)
        return members, problem

    def _row(self, shard: Shard, record: dict[str, Any], place: int, image: str, members: dict[str, Member], problem: str) -> LocalRow:
        key, status, message = str(record["key"]), record["status"], record.get("error_message")
        where = {"webdataset": f"{shard.stem}.tar", "files": shard.stem, "parquet": f"{shard.stem}.parquet"}[shard.kind]
        row = LocalRow(f"{where}/{key}", url=record[self.params.url])
        caption = record.get(self.params.caption) if self.params.caption else None
        row.texts = [] if caption is None else [str(caption)]
        own = {self.params.url, self.params.caption, "error_message"}
        row.fields = {name: value for name, value in record.items() if name not in own}
        if status != SUCCESS:
            row.code, row.detail = reason_of(status, message), cap_detail(f"img2dataset: {status}: {message}")
        elif shard.kind == "webdataset":
            self._place_in_tar(row, shard, members.get(key), problem)
        elif shard.kind == "files":
            row.path = f"{row.path}.{self._extension(shard)}"
            row.file = self._full(row.path)
        else:
            row.path, row.file, row.offset = f"{row.path}.{image}", self._full(where), place
        return row

    def _place_in_tar(self, row: LocalRow, shard: Shard, member: Member | None, problem: str) -> None:
        if member is None:
            row.code = FailureCode.UNREADABLE if problem else FailureCode.MISSING_IMAGE
            row.detail = problem or f"the table says {SUCCESS}, and {shard.stem}.tar has no image of this key"
            return
        row.path, row.file, row.offset, row.size = f"{shard.stem}.tar/{member.name}", self._full(f"{shard.stem}.tar"), member.offset, member.size

    def _extension(self, shard: Shard) -> str:
        """Extension of a shard's image files: that of the first there is (one encode_format holds for all)."""
        if shard.stem not in self._extensions:
            filesystem, inner = fsspec.core.url_to_fs(self._full(shard.stem))
            names = filesystem.ls(inner, detail=False)
            self._extensions[shard.stem] = next((end for name in names if (end := name.rpartition(".")[2]) in IMAGE_COLUMNS), IMAGE_COLUMNS[0])
        return self._extensions[shard.stem]

    @cached_property
    def _extensions(self) -> dict[str, str]:
        return {}

    def _unaccounted(self, shard: Shard, rows: int) -> Iterator[LocalRow]:
        """A failed row for each that img2dataset counted and did not write."""
        path = f"{shard.stem}_stats.json"
        if not shard.has_stats:
            detail = f"{self.root} has no {path}: img2dataset was stopped in this shard; running it again finishes it"
            yield LocalRow(f"{shard.stem}.parquet", code=FailureCode.UNREADABLE, detail=detail)
            return
        try:
            with fsspec.open(self._full(path), "rb") as file:
                count = int(json.load(file)["count"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield LocalRow(path, code=FailureCode.UNREADABLE, detail=f"{type(error).__name__}: {error}")
            return
        for number in range(rows, count):
            yield LocalRow(f"{shard.stem}.parquet/#{number}", code=FailureCode.BAD_ROW, detail=f"{path} counts {count} rows, and the table has {rows}")


def _read_table(path: str) -> tuple[pa.Table, str]:
    """A shard's table without its images, and the name of the column that has them ('' where none does)."""
    with fsspec.open(path, "rb") as opened, pq.ParquetFile(opened) as file:
        binary = [field.name for field in file.schema_arrow if pa.types.is_binary(field.type) and field.name in IMAGE_COLUMNS]
        columns = [name for name in file.schema_arrow.names if name not in binary]
        return file.read(columns=columns, use_threads=False), next(iter(binary), "")
