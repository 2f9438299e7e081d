"""Samples to train and evaluate on: committed shards, or arrays in memory, behind one interface."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.pretrain.errors import DataError
from stages.pretrain.images import ArrayImage, ImageSource, open_image
from stages.pretrain.text_mix import CHOSEN
from stages.text.stored_spans import spans_of

_KIND_ROWS = 100_000  # whose texts are compared at a time
_OPEN_TARS = 256  # stays below the common limit of 1,024 descriptors per process


class Samples(Protocol):
    """Random access to image-text samples."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The sample's key: what random draws depend on and errors name."""

    def place(self, index: int) -> str:
        """Where the sample lies, for messages."""

    def caption(self, index: int) -> str:
        """The chosen caption."""

    def texts(self, index: int) -> list[str]:
        """All texts of the sample, the chosen caption among them."""

    def kinds(self, index: int) -> list[str]:
        """The kind of each of `texts`: alt_text, or the name of the stage that wrote it."""

    def image(self, index: int) -> ImageSource:
        """The image; raises ValueError or OSError where its header cannot be read."""


class ArraySamples:
    """Samples held in memory: images uint8 [N, H, W, 3] and at least one text each, the first the chosen caption."""

    def __init__(self, images: np.ndarray, texts: Sequence[Sequence[str]], keys: Sequence[str]) -> None:
        if not len(images) == len(texts) == len(keys):
            raise DataError(f"{len(images)} images, {len(texts)} texts, {len(keys)} keys: give one of each per sample")
        self._images, self._texts, self._keys = images, texts, keys

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def place(self, index: int) -> str:
        return f"row {index} in memory"

    def caption(self, index: int) -> str:
        return self._texts[index][0]

    def texts(self, index: int) -> list[str]:
        return list(self._texts[index])

    def kinds(self, index: int) -> list[str]:
        return ["caption"] * len(self._texts[index])

    def image(self, index: int) -> ImageSource:
        return ArrayImage(self._images[index])


class ShardDataset:
    """The samples of one split of a `dataset/` folder, read by position from its tars.

    Only what `manifest.json` lists exists. The index is held in memory (about 100 bytes a sample and its texts);
    images are read by pread, so a shuffle over the whole set costs one read per sample from the page cache.
    Tars are opened on first use, per process.

    `digest` is the SHA-256 of the manifest, which holds that of every shard.
    Raises DataError where the manifest, an index or a tar is missing or contradicts the manifest.
    """

    def __init__(self, dataset_dir: str | Path, split: str = "train") -> None:
        self.root = Path(dataset_dir)
        shards = _shards_of(self.root, split)
        self.digest = hashlib.sha256((self.root / "manifest.json").read_bytes()).hexdigest()
        self._tars = [shard["tar"] for shard in shards]
        tables = [_read_index(self.root, shard) for shard in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [table.num_rows for table in tables])
        table = pa.concat_tables(tables, promote_options="default").combine_chunks()
        self._keys = _one_array(table, "key")
        self._captions = _one_array(table, "caption")
        self._ext = _one_array(table, "ext")
        self._offset = table["offset"].to_numpy()
        self._size = table["size"].to_numpy()
        self._texts = _one_array(table, "texts") if "texts" in table.column_names else None
        self._concepts = _one_array(table, "concepts") if "concepts" in table.column_names else None
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._files_lock = threading.Lock()
        self._files_pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_files_lock", "_files_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._files, self._files_lock, self._files_pid = OrderedDict(), threading.Lock(), os.getpid()

    def __len__(self) -> int:
        return len(self._shard)

    def key(self, index: int) -> str:
        return self._keys[index].as_py()

    def place(self, index: int) -> str:
        return f"{self.root / self._tars[self._shard[index]]} at byte {self._offset[index]}"

    def caption(self, index: int) -> str:
        return self._captions[index].as_py()

    def texts(self, index: int) -> list[str]:
        return [text for text, _ in self._listed(index)]

    def kinds(self, index: int) -> list[str]:
        return [kind for _, kind in self._listed(index)]

    def all_kinds(self) -> set[str]:
        """What `kinds` tells of all samples together."""
        if self._texts is None:
            return {CHOSEN}
        found: set[str] = set()
        for start in range(0, len(self), _KIND_ROWS):
            texts, captions = self._texts.slice(start, _KIND_ROWS), self._captions.slice(start, _KIND_ROWS)
            entries, row = pc.list_flatten(texts), pc.list_parent_indices(texts)
            found |= set(entries.field("kind").unique().to_pylist())
            listed = row.filter(pc.equal(entries.field("text"), captions.take(row))).unique()
            found |= {CHOSEN} if len(listed) < len(captions) else set()
        return found

    def concepts(self, index: int, text: str) -> list[Mapping[str, Any]]:
        """Concepts {id, score, start_char, end_char} that the stage `concepts` found in a text of the sample; [] where it found or saw none."""
        return [] if self._concepts is None else spans_of(self._concepts[index].as_py() or [], text)

    def _listed(self, index: int) -> list[tuple[str, str]]:
        """(text, kind) of the sample, blank texts left out; a chosen caption that is none of the listed texts comes first."""
        chosen = self.caption(index)
        entries = self._texts[index].as_py() or [] if self._texts is not None else []
        listed = [(entry["text"], entry["kind"]) for entry in entries if entry["text"].strip()]  # an image without alt-text has a blank one
        if any(text == chosen for text, _ in listed) or (listed and not chosen.strip()):
            return listed
        return [(chosen, CHOSEN), *listed]

    def image_bytes(self, index: int) -> bytes:
        """The encoded image. Raises DataError where the tar is shorter than the index says."""
        size, offset = int(self._size[index]), int(self._offset[index])
        tar = self._open(int(self._shard[index]))
        data = os.pread(tar.fileno(), size, offset)
        if len(data) != size:
            raise DataError(
                f"sample {self.key(index)}: {self.place(index)} gave {len(data)} of {size} bytes; "
                "the tar is cut short: check the dataset with `pairmill verify`"
            )
        return data

    def image(self, index: int) -> ImageSource:
        return open_image(self.image_bytes(index), self._ext[index].as_py())

    def _open(self, shard: int) -> IO[bytes]:
        with self._files_lock:
            if self._files_pid != os.getpid():  # forked: offsets are not shared by pread, but the cache's lock was
                self._files, self._files_pid = OrderedDict(), os.getpid()
            tar = self._files.pop(shard, None)
            if tar is None:
                path = self.root / self._tars[shard]
                try:
                    tar = path.open("rb", buffering=0)
                except OSError as error:
                    raise DataError(f"cannot open the shard {path}, which manifest.json lists: {error}") from error
            self._files[shard] = tar
            if len(self._files) > _OPEN_TARS:
                # only forgotten, not closed: another thread may be reading; the last reference closes it
                self._files.popitem(last=False)
            return tar


def _shards_of(root: Path, split: str) -> list[dict[str, Any]]:
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: without it a dataset is not complete; finish its run") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}): run `pairmill verify`") from error
    if manifest.get("format") != 1:
        raise DataError(f"{path}: format {manifest.get('format')!r}; this version reads format 1")
    splits = manifest.get("splits", {})
    if split not in splits:
        raise DataError(f"{path} has no split {split!r}; it has: {', '.join(sorted(splits)) or 'none'}")
    shards = splits[split]["shards"]
    if not shards:
        raise DataError(f"{path}: split {split!r} lists no shards")
    return shards


def _read_index(root: Path, shard: dict[str, Any]) -> pa.Table:
    path = root / shard["index"]
    wanted = ["key", "offset", "size", "ext", "caption"]
    try:
        schema = pq.read_schema(path)
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise DataError(f"{path} lacks the columns {', '.join(missing)}")
        table = pq.read_table(path, columns=[*wanted, *(name for name in ("texts", "concepts") if name in schema.names)])
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot read the index {path}, which manifest.json lists: {error}") from error
    if table.num_rows != shard["samples"]:
        raise DataError(
            f"{path} has {table.num_rows} rows, manifest.json says {shard['samples']}: run `pairmill verify`"
        )
    return table


def _one_array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    if pa.types.is_string(column.type):
        column = column.cast(pa.large_string())  # 32-bit offsets end at 2 GiB of text
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
