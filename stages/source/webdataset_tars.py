"""webdataset_tars: rows out of tars of images with texts, such as those of img2dataset, open_clip or pairmill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from pipeline.digests import digest_of
from schemas.outcome import FailureCode
from stages.images.local import compression_of
from stages.source.local_rows import LocalRow, LocalSource, absolute, common_folder, plain_text
from stages.source.side_files import SideFileParams
from stages.source.table_files import edges_digest, expand
from stages.source.tar_reader import read_tar
from stages.source.tar_samples import KeyRule, Sample, group_members, split_key

CLASS = "cls"  # webdataset's class label, carried as text
CLASS_BYTES = 1 << 10


class TarParams(SideFileParams):
    """Where the tars are, how members make a sample, and what of them becomes the caption."""

    tars: str | tuple[str, ...] = Field(description="path, glob, folder or list of them, local or remote (s3://, gs://): .tar, .tar.gz, .tar.zst, .tar.bz2")
    key: KeyRule = Field(
        "first_dot", description="key of a member: its path up to the first dot of the file name, as webdataset has it, or up to the last"
    )


class WebdatasetTars(LocalSource):
    """Yields the samples of tars: one row per key, in the order of the tars' names and of the first members of the keys.

    Of several images in a sample the first extension in `image` is taken, as open_clip does. A .cls is carried as `cls`.

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
        return self.params.many_texts

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
        return CLASS_BYTES if extension == CLASS else self.params.bytes_wanted(extension)

    def _row(self, tar: str, sample: Sample) -> LocalRow:
        row = LocalRow("/".join(filter(None, (self._relative(tar), sample.key))))
        row.code, row.detail = sample.code or None, sample.detail
        members = sample.members
        if not members:
            return row
        image = next((members[extension] for extension in self.params.image if extension in members), None)
        if image is not None:
            row.path, row.file, row.offset, row.size = f"{self._relative(tar)}/{image.name}", tar, image.offset, image.size
        elif row.code is None:
            row.code, row.detail = FailureCode.MISSING_IMAGE, self._no_image(sample)
        if CLASS in members:
            row.fields = {CLASS: plain_text(members[CLASS].data or b"")}
        caption, record = members.get(self.params.caption or ""), members.get("json")
        self.params.fill(row, caption and (caption.data or b""), record and (record.data or b""), record.name if record else "")
        return row

    def _no_image(self, sample: Sample) -> str:
        found = ", ".join(f".{extension}" for extension in sorted(sample.members))
        dots = any(extension.rpartition(".")[2] in self.params.image for extension in sample.members)
        advice = "; keys with dots? as webdataset does, names are split at their first dot: say input.key=last_dot" if dots else ""
        return f"no image among its members ({found}){advice}"


def _is_tar(path: str) -> bool:
    name = path.rsplit("/", 1)[-1].lower()
    return name.endswith((".tar", ".tgz")) or (compression_of(name) is not None and ".tar." in name)
