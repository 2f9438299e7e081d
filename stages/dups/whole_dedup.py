"""dedup's resolve on whole columns, for `whatif`: the same components and keepers as the query in `stages/dedup.py` finds, without the texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reason_columns import as_floats, as_numbers, dictionary_column, is_null
from pipeline.stage import ColumnEvidence, OfPlaces
from stages.dups.keeper import KeeperBy
from stages.dups.links import NO_LINKS, Links, joined
from stages.dups.whole_groups import best_of, bits_between, equal_groups, firsts, hex_column, living_groups, spread_of
from stages.dups.whole_pairs import fixed_bytes


@dataclass
class Hashes:
    """near_evidence as arrays: which living rows are `hashed` (bool [N]), the words of all hashes (uint64 [W, N]), the rows whose hash another row has too
    and its number (`rows`, `group`, whatever rows live), the links and the distance that was searched."""

    hashed: np.ndarray
    words: np.ndarray
    rows: np.ndarray
    group: np.ndarray
    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray
    width: int
    within: int


def read_hashes(evidence: ColumnEvidence) -> Hashes | None:
    """Of the living rows; None where there is no near_evidence."""
    column = evidence.column("near_evidence")
    if not pa.types.is_struct(column.type):
        return None
    hashed = evidence.alive & ~is_null(column)
    if not hashed.any():
        return None
    some, hashes, lists = int(np.argmax(hashed)), column.field("hash"), column.field("pairs")
    width, within = len(hashes[some].as_py()), column.field("within")[some].as_py()
    index = evidence.index_of("hashes", hashes, lambda: hash_groups(hashes, width))
    flat, lengths = lists.flatten(), as_numbers(pc.list_value_length(lists).fill_null(0))
    right = evidence.starts[as_numbers(flat.field("part"))] + as_numbers(flat.field("row"))
    paired = np.flatnonzero(lengths)
    left = np.repeat(paired, lengths[paired])
    both = hashed[left] & evidence.alive[right]
    words = index["words"].reshape(-1, len(hashed))
    return Hashes(hashed, words, index["rows"], index["group"], left[both], right[both], as_numbers(flat.field("distance"))[both], width, within)


def hash_groups(column: pa.Array, width: int) -> dict[str, np.ndarray]:
    """`words` of the hashes of all rows (uint64 [W * N], zeros where there is none), `rows` with equal ones and the number of their `group`."""
    rows = np.flatnonzero(~is_null(column))
    words = np.zeros((width // 8, len(column)), np.uint64)
    own = np.ascontiguousarray(fixed_bytes(pa.chunked_array([column.take(pa.array(rows))]), width).view(np.uint64).T)
    words[:, rows] = own
    places, group = equal_groups(own)
    return {"words": words.reshape(-1), "rows": rows[places], "group": group}


def has_structs(evidence: ColumnEvidence, key: str) -> bool:
    """Whether the recipe has the stage that writes an evidence column."""
    return pa.types.is_struct(evidence.column(key).type)


def has_turned(evidence: ColumnEvidence) -> bool:
    return has_structs(evidence, "near_evidence") and evidence.column("near_evidence").field("turned").null_count < len(evidence.alive)


class ArrayMeasures:
    """Bits between rows of the run, as `stages.dups.links.Measures` has them, from arrays; no turned copies, no embeddings."""

    def __init__(self, found: Hashes | None):
        self.found = found
        self.words, self.hashed = np.zeros((1, 0), np.uint64), np.empty(0, bool)

    def read(self, keys: np.ndarray, label: np.ndarray, linked: np.ndarray) -> None:
        """Hashes of all `keys` (rows of the run), zeros for a row without one."""
        if self.found is None:
            self.words, self.hashed = np.zeros((1, len(keys)), np.uint64), np.zeros(len(keys), bool)
            return
        self.hashed = self.found.hashed[keys]
        self.words = np.where(self.hashed, self.found.words[:, keys], np.uint64(0))

    def between(self, a: int, b: int) -> int:
        """0 where one has no hash, so that their link decides alone."""
        return sum(int(word[a] ^ word[b]).bit_count() for word in self.words) if self.hashed[a] and self.hashed[b] else 0

    def spread(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return spread_of(self.words, rows, starts)


def bytes_groups(column: pa.Array) -> dict[str, np.ndarray]:
    """Rows with equal bytes, whatever rows live: index of `raw_sha256`."""
    if pa.types.is_null(column.type):
        return {"rows": np.empty(0, np.int64), "group": np.empty(0, np.int64)}
    rows = np.flatnonzero(~is_null(column))
    words = fixed_bytes(pa.chunked_array([column.take(pa.array(rows))]), 32).view(np.uint64).T
    places, group = equal_groups(words)
    return {"rows": rows[places], "group": group}


def decide_whole(evidence: ColumnEvidence, found: Hashes | None, most: int, reach: int, keeper: KeeperBy) -> dict[str, pa.Array | OfPlaces]:
    """dup_of, kind, distance, cosine, match (null both) and dup_component of all rows (null for rows in no component). most: bits that join two images."""
    index = evidence.index("bytes", ("raw_sha256",), lambda: bytes_groups(evidence.column("raw_sha256")))
    byte_rows, byte_group = living_groups(index["rows"], index["group"], evidence.alive)
    same, near = [_to_first(byte_rows, byte_group)], NO_LINKS
    if found is not None:
        same.append(_to_first(*living_groups(found.rows, found.group, found.hashed)))
        close = found.distance <= most
        near = Links(found.left[close], found.right[close], found.distance[close])
    keys, labels, _ = joined(same, near, NO_LINKS, reach, ArrayMeasures(found))
    order = np.argsort(labels, kind="stable")  # components together, rows rising in each
    rows, group = keys[order], labels[order]
    best = rows[_best(evidence, rows, group, keeper)]
    twin = byte_rows[_best(evidence, byte_rows, byte_group, keeper)] != byte_rows  # a better row has the same bytes
    same_bytes = np.isin(rows, byte_rows[twin], assume_unique=True)
    return _columns(evidence, found, rows, best, same_bytes)


def _to_first(rows: np.ndarray, group: np.ndarray) -> Links:
    return Links(rows, rows[firsts(group)], np.zeros(len(rows), np.int64))


def _best(evidence: ColumnEvidence, rows: np.ndarray, group: np.ndarray, keeper: KeeperBy) -> np.ndarray:
    index = pa.array(rows)

    def taken(key: str) -> np.ndarray:
        """NaN where null; a NaN that is stored counts as the greatest, as in the query."""
        column = evidence.column(key)
        column = pa.nulls(len(rows), pa.float64()) if pa.types.is_null(column.type) else column.take(index)
        return np.where(is_null(column), np.nan, np.nan_to_num(as_floats(column), nan=np.inf))

    pixels, score = (np.nan_to_num(values, nan=-np.inf) for values in (taken("width") * taken("height"), taken("clip_score")))
    ids = fixed_bytes(pa.chunked_array([evidence.column("sample_id").take(index)]), 16).view(">u8")
    most = (pixels, score) if keeper == "pixels" else (score, pixels)
    return best_of(group, most, (ids[:, 0].astype(np.uint64), ids[:, 1].astype(np.uint64)))


def _columns(evidence: ColumnEvidence, found: Hashes | None, rows: np.ndarray, best: np.ndarray, same_bytes: np.ndarray) -> dict[str, pa.Array | OfPlaces]:
    goes = rows != best
    kinds = np.full(len(evidence.alive), -1, np.int8)
    kinds[rows[goes]] = np.where(same_bytes[goes], 0, 1)
    order = np.argsort(rows)
    rising, keeper = rows[order], best[order]

    def ids(places: np.ndarray, only_gone: bool) -> pa.Array:
        at = np.minimum(np.searchsorted(rising, places), max(0, len(rising) - 1))
        told = rising[at] == places if len(rising) else np.zeros(len(places), bool)
        own = keeper[at[told]]
        hexes = hex_column(fixed_bytes(pa.chunked_array([evidence.column("sample_id").take(pa.array(own))]), 16))
        place = np.full(len(places), -1)
        place[told] = np.where(own != places[told], np.arange(len(own)), -1) if only_gone else np.arange(len(own))
        return hexes.take(pa.array(place, mask=place < 0))

    def distance(places: np.ndarray) -> pa.Array:
        if found is None:
            return pa.nulls(len(places), pa.int16())
        to = places.copy()
        gone = kinds[places] >= 0
        to[gone] = keeper[np.searchsorted(rising, places[gone])]
        return pa.array(bits_between(found.words, places, to), mask=~(gone & found.hashed[places] & found.hashed[to]))

    return {
        "kind": dictionary_column(kinds, ["bytes", "near"]),
        "dup_of": lambda places: ids(places, True),
        "dup_component": lambda places: ids(places, False),
        "distance": distance,
        **{name: lambda places: pa.nulls(len(places), pa.float32()) for name in ("cosine", "match")},
    }
