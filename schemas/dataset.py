"""The published dataset: names of its files and members, columns of its tables, and manifest.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.sample import TEXTS

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "README.md"
SIZES = "shards/sizes.json"
CROISSANT = "croissant.json"
FOOTER_KEY = b"pairmill"

# Members of a sample in a tar, adjacent and in this order: <key>.jpg|png|webp, <key>.txt, <key>.json.
IMAGE_EXTENSIONS = ("jpg", "png", "webp")
CAPTION_EXTENSION = "txt"
RECORD_EXTENSION = "json"

# First columns of a shard's index; after them stand the carried source columns and the columns of the stages.
INDEX_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "offset": pa.int64(),  # first byte of the image in the tar
    "size": pa.int64(),  # bytes of the image
    "ext": pa.string(),
    "caption": pa.string(),  # the chosen text, equal to <key>.txt
    "texts": TEXTS,
}
# Columns of the index that are not repeated in <key>.json: they say where the image lies.
PLACE_COLUMNS = ("offset", "size", "ext")

# First columns of a rejected file; after them the carried and the plain stage columns, null behind the row's end.
REJECTED_COLUMNS: dict[str, pa.DataType] = {
    "sample_id": pa.string(),
    "key": pa.string(),
    "url": pa.string(),
    "alt_text": pa.string(),
    "status": pa.string(),  # dropped or failed
    "stage": pa.string(),
    "reason": pa.string(),
    "detail": pa.string(),
}

# A column of another meaning under one of these names is published as '<stage>.<column>'.
RESERVED_COLUMNS = frozenset({*INDEX_COLUMNS, *REJECTED_COLUMNS, "tar"})


class ManifestError(ValueError):
    """manifest.json is missing, damaged or of another format."""


def shard_stem(split: str, number: int) -> str:
    """Path of a shard's files in the dataset without their suffix: shards/train-00000."""
    return f"shards/{split}-{number:05d}"


def rejected_path(part: int) -> str:
    return f"rejected/part-{part:05d}.parquet"


@dataclass(frozen=True)
class Shard:
    """A tar, its index, the offsets of its samples, and the file of its embeddings where the recipe makes some.

    Paths relative to the dataset."""

    tar: str
    index: str
    samples: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str
    embeddings: str = ""
    embeddings_sha256: str = ""
    offsets: str = ""
    offsets_sha256: str = ""


@dataclass(frozen=True)
class Split:
    samples: int
    shards: list[Shard] = field(default_factory=list)


@dataclass(frozen=True)
class RejectedFile:
    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what belongs to the dataset. Holds no time, host or path of the run.

    counts: {input, kept, dropped, failed, stages: {stage: {dropped: {reason: n}, failed: {code: n}}}}.
    images: 'decoded' when every image was decoded whole before it was stored, 'header' when only its header was read.
    models: name in the recipe -> kind, name, identity, digest of the weights. files: SHA-256 of all other files.
    facts: stage -> what it found of the whole corpus, such as the edges of `levels`.
    """

    splits: dict[str, Split]
    rejected: list[RejectedFile]
    counts: dict[str, Any]
    images: str
    recipe_digest: str
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests are equal bytes. Shards without embeddings have no such keys, and `facts` is there where there are any."""
        data = asdict(self)
        if not self.facts:
            del data["facts"]
        for split in data["splits"].values():
            split["shards"] = [{k: v for k, v in shard.items() if v != ""} for shard in split["shards"]]
        return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read manifest.json (or that of a dataset folder). Raises ManifestError that says what to do."""
        path = Path(path)
        file = path / MANIFEST if path.is_dir() else path
        try:
            return cls.parse(file.read_bytes(), str(file))
        except FileNotFoundError as error:
            raise ManifestError(f"{file} does not exist: a dataset without a manifest is not complete; finish its run") from error

    @classmethod
    def parse(cls, content: bytes, file: str) -> Manifest:
        """The bytes of a manifest; `file` names it in errors. Raises ManifestError that says what to do."""
        try:
            data = json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{file} is not JSON ({error}): run the recipe again to write it anew") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ManifestError(f"{file}: format {found!r}; this version reads format {FORMAT}")
        return cls._from_dict(data, file)

    @classmethod
    def _from_dict(cls, data: dict[str, Any], file: str) -> Manifest:
        try:
            splits = {
                name: Split(split["samples"], [Shard(**shard) for shard in split["shards"]])
                for name, split in data["splits"].items()
            }
            rejected = [RejectedFile(**entry) for entry in data["rejected"]]
            return cls(**{**data, "splits": splits, "rejected": rejected})
        except (KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{file}: not as pairmill writes it ({type(error).__name__}: {error}); run the recipe again to write it anew") from error

    @property
    def samples(self) -> int:
        return sum(split.samples for split in self.splits.values())

    def shards(self) -> list[Shard]:
        return [shard for split in self.splits.values() for shard in split.shards]

    def listed(self) -> dict[str, str]:
        """Every file of the dataset but the manifest itself -> its SHA-256."""
        files = dict(self.files)
        for shard in self.shards():
            files |= {shard.tar: shard.tar_sha256, shard.index: shard.index_sha256}
            if shard.embeddings:
                files[shard.embeddings] = shard.embeddings_sha256
            if shard.offsets:
                files[shard.offsets] = shard.offsets_sha256
        return files | {entry.path: entry.sha256 for entry in self.rejected}
