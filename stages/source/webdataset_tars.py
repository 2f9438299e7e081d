"""webdataset_tars: rows out of tars of images with texts, such as those of img2dataset, open_clip or pairmill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from pipeline.digests import digest_of
from schemas.outcome import FailureCode
from stages.images.local import compression_of
from stages.source.local_rows import LocalParams, LocalRow, LocalSource, absolute, common_folder, lines_of, plain_text
from stages.source.table_files import edges_digest, expand
from stages.source.tar_reader import read_tar
from stages.source.tar_samples import KeyRule, Sample, group_members, split_key

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
TEXT_BYTES = 1 << 20  # of a text member; longer ones are cut, and alt_text_cut says so
JSON_BYTES = 4 << 20
CLASS = "cls"


class TarParams(LocalParams):
    """Where the tars are and what their members mean."""

    tars: str | tuple[str, ...] = Field(description="path, glob, folder or list of them, local or remote (s3://, gs://): .tar, .tar.gz, .tar.zst, .tar.bz2")
    image: tuple[str, ...] = Field(IMAGE_EXTENSIONS, description="extensions of images; of several in a sample the first of this list is taken")
    caption: str | None = Field("txt", description="extension of the member with the caption; null: none")
    lines: bool = Field(False, description="each line of that member is a caption of its own")
    caption_field: str | None = Field("caption", description="field of the .json with the caption, where there is no such member; null: none")
    texts_field: str | None = Field(None, description="field of the .json with a list of further texts (strings, or objects with `text`)")
    url_field: str | None = Field("url", description="field of the .json with the URL that the image came from; null: none")
    key: KeyRule = Field(
        "first_dot", description="key of a member: its path up to the first dot of the file name, as webdataset has it, or up to the last"
    )


class WebdatasetTars(LocalSource):
    """Yields the samples of tars: one row per key, in the order of the tars' names and of the first members of the keys.

    Headers and small members (.txt, .json, .cls) are read; images are skipped and later read by their place. Members of a key
    may stand apart in a tar. `path` is <tar>/<member>, relative to the folder that all tars share. Hidden files and __notes__
    are left out. What is no good sample becomes a failed row: no image, a key twice in a tar, a link, device, absolute name
    or '..', broken JSON; a damaged or cut tar fails one row that names the byte, and the samples before it stay.
    """

    name: ClassVar[str] = "webdataset_tars"
    Params = TarParams
    params: TarParams

    @property
    def many_texts(self) -> bool:  # type: ignore[override]
        return self.params.lines or self.params.texts_field is not None

    @cached_property
    def files(self) -> list[tuple[str, int]]:
        """(path, bytes) of every tar."""
        patterns = [self.params.tars] if isinstance(self.params.tars, str) else self.params.tars
        return sorted({(absolute(path), size) for pattern in patterns for path, size in expand(pattern, "input.tars", _is_tar)})

    @cached_property
    def root(self) -> str:
        """The folder that all tars share."""
        return common_folder([path for path, _ in self.files])

    def fingerprint(self) -> str:
        """Name, size and edges (first and last 64 KB) of every tar, and the options that change rows."""
        files = [[self._relative(path), size, edges_digest(path, size)] for path, size in self.files]
        return digest_of(self.name, self.version, files, self.params.model_dump(mode="json", exclude={"tars"}))

    def rows(self) -> Iterator[LocalRow]:
        for path, size in self.files:
            for sample in group_members(read_tar(path, size, self._wanted), self.params.key):
                yield self._row(path, sample)

    def _relative(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")

    def _wanted(self, name: str) -> int:
        split = split_key(name, self.params.key)
        extension = split[1] if split else ""
        return TEXT_BYTES if extension in (self.params.caption, CLASS) else JSON_BYTES + 1 if extension == "json" else 0

    def _row(self, tar: str, sample: Sample) -> LocalRow:
        row = LocalRow("/".join(filter(None, (self._relative(tar), sample.key))))
        row.code, row.detail = sample.code or None, sample.detail
        if not sample.members:
            return row
        fields = self._fields(sample, row)
        image = next((sample.members[extension] for extension in self.params.image if extension in sample.members), None)
        if image is not None:
            row.path, row.file, row.offset, row.size = f"{self._relative(tar)}/{image.name}", tar, image.offset, image.size
        elif row.code is None:
            row.code, row.detail = FailureCode.MISSING_IMAGE, self._no_image(sample)
        row.texts, row.url = self._texts(sample, fields), self._url(fields)
        own = {self.params.caption_field, self.params.texts_field, self.params.url_field}
        row.fields = {name: value for name, value in fields.items() if name not in own}
        return row

    def _fields(self, sample: Sample, row: LocalRow) -> dict[str, Any]:
        """The .json's fields, and the .cls as `cls`. What is no JSON object fails the row."""
        fields: dict[str, Any] = {}
        member = sample.members.get("json")
        if member is not None:
            try:
                if member.size > JSON_BYTES:
                    raise ValueError(f"{member.size} bytes, more than {JSON_BYTES}")
                found = json.loads(member.data or b"")
                if not isinstance(found, dict):
                    raise ValueError(f"a JSON {type(found).__name__}, not an object")
                fields = found
            except (ValueError, RecursionError) as error:
                if row.code is None:
                    row.code, row.detail = FailureCode.BAD_ROW, f"{member.name}: {error}"
        if CLASS in sample.members:
            fields = {**fields, CLASS: plain_text(sample.members[CLASS].data or b"")}
        return fields

    def _texts(self, sample: Sample, fields: Mapping[str, Any]) -> list[str | Mapping[str, Any]]:
        texts: list[str | Mapping[str, Any]] = []
        member = sample.members.get(self.params.caption or "")
        if member is not None:
            text = plain_text(member.data or b"")
            texts += lines_of(text) if self.params.lines else [text]
        elif self.params.caption_field and isinstance(caption := fields.get(self.params.caption_field), str):
            texts.append(caption)
        further = fields.get(self.params.texts_field) if self.params.texts_field else None
        texts += [text for text in further if isinstance(text, str | dict)] if isinstance(further, list) else []
        return texts

    def _url(self, fields: Mapping[str, Any]) -> str | None:
        url = fields.get(self.params.url_field) if self.params.url_field else None
        return url if isinstance(url, str) and url.strip() else None

    def _no_image(self, sample: Sample) -> str:
        found = ", ".join(f".{extension}" for extension in sorted(sample.members))
        dots = any(extension.rpartition(".")[2] in self.params.image for extension in sample.members)
        advice = "; keys with dots? as webdataset does, names are split at their first dot: say input.key=last_dot" if dots else ""
        return f"no image among its members ({found}){advice}"


def _is_tar(path: str) -> bool:
    name = path.rsplit("/", 1)[-1].lower()
    return name.endswith((".tar", ".tgz")) or (compression_of(name) is not None and ".tar." in name)
