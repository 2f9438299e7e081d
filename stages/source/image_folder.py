"""image_folder: rows out of a folder of images, with captions beside them, in a table, or none at all."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar, Self

import fsspec
from pydantic import Field, model_validator

from pipeline.digests import digest_of
from schemas.outcome import FailureCode
from stages.images.local import failure_of_file, is_local
from stages.source.captions_table import Captions, CaptionsTable
from stages.source.folders import Entry, Folder
from stages.source.local_rows import LocalRow, LocalSource, absolute
from stages.source.side_files import SideFileParams
from stages.source.table_files import edges_digest

REMOTE_READERS = 16  # side files of a remote folder that are read at a time
_CHUNK = 512


class FolderParams(SideFileParams):
    """Where the images are, and where their captions: beside them (`caption`, .json) or in a table."""

    folder: str = Field(description="folder of the images, local or remote (s3://, gs://)")
    recursive: bool = Field(True, description="also take the folders inside it")
    match: tuple[str, ...] | None = Field(None, description="take only images whose path in the folder fits one of these globs (* also matches /)")
    table: str | tuple[str, ...] | None = Field(
        None, description="table of captions (Parquet, CSV, TSV, JSON lines): path in the folder, whole path, or list; then no files beside the images are read"
    )
    table_file: str = Field("file_name", description="its column with the path of the image in the folder; several lines of one image are several captions")
    table_text: str | tuple[str, ...] = Field("caption", description="its column with the caption (or list of captions), or several columns")

    @model_validator(mode="after")
    def _check_extensions(self) -> Self:
        if self.caption in self.image or "json" in self.image:
            raise ValueError(f"image: {self.caption if self.caption in self.image else 'json'!r} cannot be an image and a text at once")
        return self


class ImageFolder(LocalSource):
    """Yields one row per image of a folder, in the order of the paths' bytes, one folder in memory at a time.

    The caption of a/b.jpg is a/b.txt (or a/b.jpg.txt), or a field of a/b.json; or that of `table`. An image without a caption is a
    row with an empty text. A caption without an image is a failed row (missing_image), an unreadable or broken file beside an image
    fails that image's row, and so do links that lead out of the folder (unsafe_path). Hidden files and folders are left out, and so
    are files of other kinds. sample_id is made of 'image_folder', the path in the folder, and the first caption.
    """

    name: ClassVar[str] = "image_folder"
    Params = FolderParams
    params: FolderParams

    @property
    def many_texts(self) -> bool:  # type: ignore[override]
        return self.params.many_texts or self.params.table is not None

    @cached_property
    def folder(self) -> Folder:
        folder = Folder(absolute(self.params.folder), self.params.recursive)
        folder.check("input.folder")
        return folder

    @cached_property
    def table(self) -> CaptionsTable | None:
        if self.params.table is None:
            return None
        given = [self.params.table] if isinstance(self.params.table, str) else self.params.table
        paths = [path if path.startswith("/") or not is_local(path) else self.folder.full(path) for path in given]
        text = self.params.table_text
        return CaptionsTable(paths, self.params.table_file, [text] if isinstance(text, str) else text, self.params.columns_to_carry)

    def fingerprint(self) -> str:
        """Path and size of every image and file beside one, edges (first and last 64 KB) of the tables, and the options that change rows."""
        files = hashlib.sha256()
        for run, _ in self.folder.walk():
            for entry in filter(self._counts, run):
                files.update(f"{entry.path}\0{entry.size}\0{entry.code}\n".encode())
        tables = [[file.size, edges_digest(file.path, file.size)] for file in self.table.files] if self.table else []
        options = self.params.model_dump(mode="json", exclude={"folder", "table"})
        return digest_of(self.name, self.version, files.hexdigest(), tables, options)

    def rows(self) -> Iterator[LocalRow]:
        return self._with_table(self.table) if self.table else self._with_side_files()

    def _counts(self, entry: Entry) -> bool:
        return bool(entry.code) or self._is_image(entry) or (self.table is None and self.params.bytes_wanted(_extension(entry)) > 0)

    def _is_image(self, entry: Entry) -> bool:
        return _extension(entry) in self.params.image

    def _chosen(self, entry: Entry) -> bool:
        return self._is_image(entry) and (self.params.match is None or any(fnmatch.fnmatchcase(entry.path, glob) for glob in self.params.match))

    def _row(self, entry: Entry) -> LocalRow:
        if entry.code:
            return LocalRow(entry.path, code=entry.code, detail=entry.detail)
        return LocalRow(entry.path, file=self.folder.full(entry.path))

    def _with_side_files(self) -> Iterator[LocalRow]:
        for run, by_name in self.folder.walk():
            stems = {PurePosixPath(name).stem for name, entry in by_name.items() if self._is_image(entry)}
            jobs = [entry for entry in run if self._belongs(entry, stems, by_name)]
            yield from self._mapped(jobs, by_name)

    def _belongs(self, entry: Entry, stems: set[str], by_name: dict[str, Entry]) -> bool:
        """Whether an entry makes a row: chosen images, refused entries that may be one, captions without an image."""
        if self._is_image(entry):
            return self._chosen(entry)
        if self.params.bytes_wanted(_extension(entry)):
            name = PurePosixPath(entry.name)
            alone = name.stem not in stems and not (name.stem in by_name and self._is_image(by_name[name.stem]))
            return alone and self.params.match is None
        return entry.is_folder

    def _mapped(self, jobs: list[Entry], by_name: dict[str, Entry]) -> Iterator[LocalRow]:
        if is_local(self.folder.root):
            yield from (self._read_beside(entry, by_name) for entry in jobs)
            return
        with ThreadPoolExecutor(REMOTE_READERS) as pool:
            for start in range(0, len(jobs), _CHUNK):
                yield from pool.map(lambda entry: self._read_beside(entry, by_name), jobs[start : start + _CHUNK])

    def _read_beside(self, entry: Entry, by_name: dict[str, Entry]) -> LocalRow:
        row = self._row(entry)
        if not self._is_image(entry):
            if not entry.code:
                row.file, row.code, row.detail = None, FailureCode.MISSING_IMAGE, "there is no image of this name beside it"
            return row
        caption = self._side_file(row, entry, by_name, self.params.caption)
        record = self._side_file(row, entry, by_name, "json")
        self.params.fill(row, caption, record, f"{PurePosixPath(entry.path).stem}.json")
        return row

    def _side_file(self, row: LocalRow, image: Entry, by_name: dict[str, Entry], extension: str | None) -> bytes | None:
        """Bytes of a/b.txt or a/b.jpg.txt for a/b.jpg; None where there is none. One that cannot be read fails the row."""
        stem = PurePosixPath(image.name).stem
        names = (f"{name}.{suffix}" for name in (stem, image.name) for suffix in ((extension, extension.upper()) if extension else ()))
        found = next((by_name[name] for name in names if name in by_name), None)
        if extension is None or found is None:
            return None
        code, detail, path = found.code, found.detail, self.folder.full(found.path)
        if not code:
            try:
                with open(path, "rb") if is_local(path) else fsspec.open(path, "rb") as file:
                    return file.read(self.params.bytes_wanted(extension))
            except OSError as error:
                failure = failure_of_file(error, found.path)
                code, detail = FailureCode.UNREADABLE, failure.detail
        if row.code is None:
            row.code, row.detail = code, f"{found.path}: {detail}"
        return None

    def _with_table(self, table: CaptionsTable) -> Iterator[LocalRow]:
        """Images and lines of the table side by side, both in the order of the paths; then what was no line."""
        entries = (entry for run, _ in self.folder.walk() for entry in run if self._chosen(entry) or entry.is_folder)
        prefix = f"{self.folder.root}/"
        for entry, captions in _side_by_side(entries, table.in_order(prefix)):
            if entry is None:
                assert captions is not None
                yield from self._without_image(captions)
                continue
            row = self._row(entry)
            if captions is not None:
                row.texts, row.fields = captions.texts, captions.fields
            yield row
        for path, line in table.malformed():
            yield LocalRow("", [line.line], code=FailureCode.BAD_ROW, detail=f"{path}: {line.problem}")

    def _without_image(self, captions: Captions) -> Iterator[LocalRow]:
        path = captions.path
        if path and self.params.match is not None and not any(fnmatch.fnmatchcase(path, glob) for glob in self.params.match):
            return
        code, detail = FailureCode.MISSING_IMAGE, "the table names it, and the folder has no such image"
        if not path:
            code, detail = FailureCode.BAD_ROW, "no file name"
        elif path.startswith("/") or ".." in path.split("/"):
            code, detail = FailureCode.UNSAFE_PATH, "the table names a path outside of the folder"
        yield LocalRow(path, captions.texts, captions.fields, code=code, detail=f"{detail} (line {captions.line} of the table)")


def _extension(entry: Entry) -> str:
    return entry.name.rpartition(".")[2].lower() if "." in entry.name else ""


def _side_by_side(entries: Iterable[Entry], captions: Iterable[Captions]) -> Iterator[tuple[Entry | None, Captions | None]]:
    """Merge by path, both in the order of the paths' bytes."""
    left, right = iter(entries), iter(captions)
    entry, found = next(left, None), next(right, None)
    while entry is not None or found is not None:
        one = entry.path.encode() if entry is not None else None
        other = found.path.encode() if found is not None else None
        if other is None or (one is not None and one < other):
            yield entry, None
            entry = next(left, None)
        elif one is None or other < one:
            yield None, found
            found = next(right, None)
        else:
            yield entry, found
            entry, found = next(left, None), next(right, None)
