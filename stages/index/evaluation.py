"""Evaluation sets as a worker holds them: look-ups by bytes, pictures, embeddings and texts."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.console import say
from pipeline.digests import canonical_json, digest_of
from pipeline.errors import Fatal, RecipeError
from pipeline.store import as_vectors
from stages.dups.lookup import HashTable
from stages.images.leaks import THUMB, VERSION, Look, agreement, boxes
from stages.images.local import is_local
from stages.index.build import TARS, build_index, images_of
from stages.index.files import EMBEDDING, FORMAT, SUFFIX, Index, IndexFacts, index_path, is_index, known_path, read_facts, read_index, write_index
from stages.index.texts import GRAM, TextTable
from stages.near_dup import fixed_bytes
from stages.source.local_rows import absolute, text_of

_CLOSE_LOOKS = 8  # evaluation pictures, nearest first, that a row is laid over
_TEXT_FILES = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")


class EvaluationSets:
    """Several indexes as one. `bytes`: SHA-256 -> item. An item is told as `<name of the set>/<item>`."""

    def __init__(self, indexes: Sequence[Index], distance: int, min_words: int, embeddings: bool):
        self.items = [f"{index.facts.name}/{item}" for index in indexes for item in index.table["item"].to_pylist()]
        digests = [digest for index in indexes for digest in index.table["raw_sha256"].to_pylist()]
        self.bytes = {digest: item for digest, item in zip(reversed(digests), reversed(self.items), strict=True) if digest is not None}
        texts = (texts for index in indexes for texts in index.table["texts"].to_pylist())
        self.texts = TextTable(((item, text) for item, some in zip(self.items, texts, strict=True) for text in some or ()), min_words)
        self._load_pictures(indexes, distance)
        self._load_embeddings(indexes if embeddings else [])

    def _load_pictures(self, indexes: Sequence[Index], distance: int) -> None:
        hashes, thumbs, crops, owners, start = [], [], [], [], 0
        for index in indexes:
            has = np.flatnonzero(index.table["windows"].combine_chunks().is_valid().to_numpy(zero_copy_only=False))
            part = index.table.take(has)
            if len(has):
                hashes.append(fixed_bytes(part["windows"], part.schema.field("windows").type.byte_width))
                thumbs.append(fixed_bytes(part["thumb"], THUMB * THUMB))
                crops.append(fixed_bytes(part["box"], 4))
                owners.append(has + start)
            start += index.table.num_rows
        self.pictures = sum(map(len, owners))
        if not self.pictures:
            return
        self._owners, self._thumbs, self._boxes = np.concatenate(owners), np.concatenate(thumbs), np.concatenate(crops)
        windows = np.concatenate(hashes)
        self._per_picture = windows.shape[1] // 8
        self._table = HashTable(windows.reshape(-1, 8), distance)

    def _load_embeddings(self, indexes: Sequence[Index]) -> None:
        self._embedded = np.empty(0, np.int64)
        vectors, owners, start = [], [], 0
        for index in indexes:
            if EMBEDDING in index.table.column_names:
                has = np.flatnonzero(index.table[EMBEDDING].combine_chunks().is_valid().to_numpy(zero_copy_only=False))
                found = as_vectors(index.table[EMBEDDING].take(has)).astype(np.float32)
                vectors.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
                owners.append(has + start)
            start += index.table.num_rows
        if owners:
            self._vectors, self._embedded = np.concatenate(vectors), np.concatenate(owners)

    def nearest_pictures(self, looked: Sequence[Sequence[Look]]) -> list[tuple[str, int, float] | None]:
        """For each row's looks: (item, bits, agreement) of the evaluation picture that agrees best among the nearest by hash; None where none is near."""
        places = [(row, look) for row, some in enumerate(looked) for look in some]
        answer: list[tuple[str, int, float] | None] = [None] * len(looked)
        if not places or not self.pictures:
            return answer
        queries = np.frombuffer(b"".join(look.hash for _, look in places), np.uint8).reshape(-1, 8)
        pairs = self._table.near(queries)
        owner = np.array([row for row, _ in places])[pairs.left]
        order = np.lexsort((pairs.right, pairs.left, pairs.distance, owner))
        nearest: dict[int, dict[int, tuple[int, int, Look]]] = {}
        for row, query, window, bits in zip(
            owner[order].tolist(), pairs.left[order].tolist(), pairs.right[order].tolist(), pairs.distance[order].tolist(), strict=True
        ):
            picture, nth = divmod(window, self._per_picture)
            found = nearest.setdefault(row, {})
            if picture not in found and len(found) < _CLOSE_LOOKS:
                found[picture] = (bits, nth, places[query][1])
        for row, found in nearest.items():
            answer[row] = self._closest(found)
        return answer

    def _closest(self, found: dict[int, tuple[int, int, Look]]) -> tuple[str, int, float]:
        measured = []
        for picture, (bits, nth, look) in found.items():
            box = boxes(self._boxes[picture].tobytes())[nth]
            agrees = agreement(self._thumbs[picture].reshape(THUMB, THUMB), box, look.view)
            measured.append((-round(agrees, 4), bits, picture))
        agrees, bits, picture = min(measured)
        return self.items[self._owners[picture]], bits, -agrees

    def nearest_embeddings(self, rows: Sequence[bytes | None]) -> list[tuple[str, float] | None]:
        """(item, cosine) of the nearest evaluation image of each row's embedding (bytes of float16 [D]). Raises Fatal for another width."""
        answer: list[tuple[str, float] | None] = [None] * len(rows)
        if not len(self._embedded):
            return answer
        for at, stored in enumerate(rows):
            if stored is None:
                continue
            unit = np.frombuffer(stored, np.float16).astype(np.float32)
            if len(unit) != self._vectors.shape[1]:
                width = self._vectors.shape[1]
                raise Fatal(f"decontaminate: the rows' embeddings have {len(unit)} numbers, those of the indexes {width}; use one model for both")
            cosines = self._vectors @ (unit / max(float(np.linalg.norm(unit)), 1e-12))
            best = int(np.argmax(cosines))
            # Summed again in float64: the answer does not depend on how a matrix product adds up.
            exact = float((self._vectors[best].astype(np.float64) * unit.astype(np.float64)).sum() / max(float(np.linalg.norm(unit.astype(np.float64))), 1e-12))
            answer[at] = self.items[self._embedded[best]], round(exact, 4)
        return answer


@functools.lru_cache(maxsize=4)
def evaluation_sets(against: tuple[str, ...], distance: int, min_words: int, embeddings: bool) -> EvaluationSets:
    """The sets of a recipe, loaded once per process."""
    return EvaluationSets([opened(name) for name in against], distance, min_words, embeddings)


def digests_of(against: tuple[str, ...], embeddings: bool) -> list[list[str]]:
    """(name, digest of the contents) of each set. Raises RecipeError where one is missing."""
    found = []
    for name in against:
        if is_plain(name):
            if embeddings and not _is_texts(name):
                told = f"`pairmill index build NAME --images {name} --model ...` makes one to name here"
                raise RecipeError(f"{name}: embeddings of evaluation images stand in indexes alone; {told}, or set embeddings: false")
            found.append([_set_name(name), _contents(name)])
            continue
        if "/" in name and not index_path(name).is_file():
            raise RecipeError(f"{name}: there is no such folder of images, tar, file of texts ({', '.join(_TEXT_FILES)}) or index")
        try:
            facts = read_facts(known_path(name))
        except RecipeError as error:
            raise error if index_path(name).is_file() else RecipeError(f"{error}; nor is there a folder, tar or file of texts of this name") from None
        if embeddings and not facts.model:
            raise RecipeError(f"index {name}: has no embeddings; build it with --model, or set embeddings: false")
        found.append([facts.name, facts.digest])
    return found


def facts_of(against: tuple[str, ...]) -> list[IndexFacts]:
    """Facts of those sets that are indexes."""
    return [read_facts(known_path(name)) for name in against if not is_plain(name)]


def is_plain(name: str) -> bool:
    """Whether a set is given as images or texts, and not as an index: an index of that name, or at that path, comes first."""
    path = index_path(name)
    if path.is_file() and (name.endswith(SUFFIX) or not name.endswith(".parquet") or is_index(path)):
        return bool(path.suffix != ".parquet")
    return _is_texts(name) or name.lower().endswith(TARS) or (is_local(name) and Path(name).is_dir())


def _is_texts(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(_TEXT_FILES)


def opened(name: str) -> Index:
    """A set as an index. One made of images is kept in the user's cache under the digest of what it was made of, so that each worker need not make it."""
    if not is_plain(name):
        return read_index(known_path(name))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pairmill" / "indexes"
    path = cache / f"{digest_of(_set_name(name), _contents(name), FORMAT, VERSION, GRAM)}{SUFFIX}"
    if not path.is_file():
        texts = _is_texts(name)
        cache.mkdir(parents=True, exist_ok=True)
        notes: list[str] = []
        write_index(build_index(_set_name(name), [] if texts else [name], [name] if texts else [], notes=notes), path)
        if notes:
            say(f"evaluation set {name}: {len(notes):,} of its images cannot be compared as pictures, such as {notes[0]}")
    return read_index(path)


def _set_name(name: str) -> str:
    return absolute(name).rstrip("/").rpartition("/")[2]


@functools.cache
def _contents(name: str) -> str:
    """Digest of what a set of images or texts is made of, once per process: path and texts of each row, SHA-256 of every file's bytes."""
    if _is_texts(name):
        try:
            with open(absolute(name), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RecipeError(f"{name}: cannot be read as evaluation texts: {error.strerror or error}") from error
    total, files = hashlib.sha256(), set()
    for row in images_of(name):
        total.update(canonical_json([row.path, row.code, [text_of(entry) for entry in row.texts]]).encode("utf-8", "surrogatepass"))
        files |= {row.file} if row.file else set()
    if not files:
        raise RecipeError(f"{name}: no images here to keep out of the data")
    for path in sorted(files):
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
