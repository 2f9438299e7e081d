"""Links between rows that near_dup and semantic_dup found, as arrays, and how far apart rows are in their measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from stages.dups.components import components, distinct, split_weak_chains
from stages.dups.keeper import ROW_KEY
from stages.dups.whole_groups import spread_of

if TYPE_CHECKING:
    import duckdb

FAR = 1 << 20  # bits: further than any two hashes
SEMANTIC_STEPS = 1000  # "bits" of the least cosine where there are no hashes


@dataclass(frozen=True)
class Links:
    """Rows as keys (part * 2^32 + row), int64 [N]; `distance` in bits of the hash that decides, int64 [N]: cosines are measured in the same bits."""

    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def to(self, label: np.ndarray, keys: np.ndarray) -> Links:
        """Between places in `keys` after `label`; a link within one place is left out."""
        left, right = (label[np.searchsorted(keys, side)] for side in (self.left, self.right))
        open_ = left != right
        return Links(left[open_], right[open_], self.distance[open_])

    def and_those_of(self, other: Links) -> Links:
        return Links(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("left", "right", "distance")))


NO_LINKS = Links(*(np.empty(0, np.int64) for _ in range(3)))


def has_evidence(con: duckdb.DuckDBPyConnection, column: str) -> bool:
    """Whether the recipe has the stage that writes `column`: else it is missing from `rows`, or has no type."""
    relation = con.sql("SELECT * FROM rows LIMIT 0")
    return column in relation.columns and relation.types[relation.columns.index(column)].id == "struct"


def links_of(con: duckdb.DuckDBPyConnection, column: str, measure: str, holds: str) -> Links:
    """Pairs of an evidence column that hold (SQL over the pair `p`), both rows alive, with `measure` (SQL) as distance."""
    found = con.sql(
        f"""
        SELECT a, b, CAST({measure} AS BIGINT) AS distance
        FROM (SELECT a, p, p.part::BIGINT * 4294967296 + p."row" AS b
              FROM (SELECT {ROW_KEY} AS a, unnest({column}.pairs) AS p FROM rows WHERE {column}.pairs IS NOT NULL) WHERE {holds})
        SEMI JOIN (SELECT {ROW_KEY} AS b FROM rows) USING (b) ORDER BY a, b
        """
    ).to_arrow_table()
    return Links(*(found[name].to_numpy() for name in ("a", "b", "distance")))


class Between(Protocol):
    """How far apart linked rows are, for `split_weak_chains`; rows are places in `keys`."""

    def read(self, keys: np.ndarray, label: np.ndarray, linked: np.ndarray) -> None: ...
    def between(self, a: int, b: int) -> int: ...
    def spread(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray: ...


def joined(
    same: list[Links], near: Links, semantic: Links, reach: int, measures: Between, matched: Links = NO_LINKS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys of all linked rows (sorted), the component of each, and the part of it that holds without semantic links; both named by their least row's key.

    Rows with equal bytes or hashes (`same`) are one from the start; links of all kinds are then taken from the nearest to the farthest, and chains of them
    that hold through weak links alone are split (`split_weak_chains`). Two rows of a `matched` link are as near as it says.
    """
    keys = distinct(np.concatenate([side for links in (*same, near, semantic, matched) for side in (links.left, links.right)]))
    ends = [(np.searchsorted(keys, links.left), np.searchsorted(keys, links.right)) for links in same]
    one = components(len(keys), *(np.concatenate([pair[side] for pair in ends]) for side in (0, 1)))
    fits, embedded = matched.to(one, keys), semantic.to(one, keys)
    hashed = near.to(one, keys).and_those_of(fits)
    left, right, distance = (np.concatenate([getattr(hashed, name), getattr(embedded, name)]) for name in ("left", "right", "distance"))
    measures.read(keys, components(len(keys), left, right), distinct(np.concatenate([left, right])))
    whole = split_weak_chains(len(keys), left, right, distance, reach, _nearer(measures.between, fits, len(keys)), measures.spread)
    kept = whole[hashed.left] == whole[hashed.right]
    plain = components(len(keys), hashed.left[kept], hashed.right[kept])
    return keys, keys[whole[one]], keys[plain[one]]


def _nearer(between: Callable[[int, int], int], fits: Links, rows: int) -> Callable[[int, int], int]:
    """`between`, or the distance of a link in `fits` where that says nearer."""
    if not len(fits):
        return between
    codes = np.minimum(fits.left, fits.right) * rows + np.maximum(fits.left, fits.right)
    order = np.lexsort((fits.distance, codes))
    codes, distances = codes[order], fits.distance[order]

    def nearer(a: int, b: int) -> int:
        code = min(a, b) * rows + max(a, b)
        place = int(np.searchsorted(codes, code))
        bits = between(a, b)
        return min(bits, int(distances[place])) if place < len(codes) and codes[place] == code else bits

    return nearer


class Measures:
    """Bits between rows: of their hashes, or of the cosine of their embeddings where that says nearer.

    `width`: bytes of a hash, 0 without hashes. A cosine c counts (1 - c) * `scale` bits. Embeddings are held for groups of three rows and more.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, width: int, scale: float):
        self.con, self.width, self.scale = con, width, scale
        self.hashes: list[bytes | None] = []
        self.turned: list[bytes | None] = []
        self.vectors: np.ndarray = np.empty((0, 0), np.float16)
        self.place: np.ndarray = np.empty(0, np.int64)  # of each row in `vectors`, -1 where it has none

    def read(self, keys: np.ndarray, label: np.ndarray, linked: np.ndarray) -> None:
        """Hashes of the linked rows (places in `keys`), and embeddings of those in groups that may have to be split."""
        self.hashes, self.turned = [None] * len(keys), [None] * len(keys)
        self.place = np.full(len(keys), -1)
        if self.width:
            columns = "near_evidence.hash AS hash, near_evidence.turned AS turned"
            table = self._of(keys[linked], columns, "near_evidence IS NOT NULL")
            places = np.searchsorted(keys, table["key"].to_numpy()).tolist()
            for place, hash_, turned in zip(places, table["hash"].to_pylist(), table["turned"].to_pylist(), strict=True):
                self.hashes[place], self.turned[place] = hash_, turned
        doubtful = linked[np.bincount(label[linked], minlength=len(keys))[label[linked]] > 2]
        if self.scale and len(doubtful):
            table = self._of(keys[doubtful], "semantic_evidence.vector AS vector", "semantic_evidence.vector IS NOT NULL")
            self.place[np.searchsorted(keys, table["key"].to_numpy())] = np.arange(len(table))
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            self.vectors = flat.astype(np.float16).reshape(len(table), -1) if len(table) else self.vectors

    def _of(self, keys: np.ndarray, columns: str, where: str) -> pa.Table:
        self.con.register("dup_nodes", pa.table({"key": keys}))
        table = self.con.sql(f"SELECT key, {columns} FROM rows JOIN dup_nodes ON {ROW_KEY} = key WHERE {where} ORDER BY key").to_arrow_table()
        self.con.unregister("dup_nodes")
        return table

    def between(self, a: int, b: int) -> int:
        """Bits between two rows, the less of the two measures; 0 where they have none in common, so that their link decides alone."""
        found = [bits for bits in (self._bits(a, b), self._cosine_bits(a, b)) if bits is not None]
        return min(found, default=0)

    def _bits(self, a: int, b: int) -> int | None:
        mine, other = self.hashes[a], self.hashes[b]
        if mine is None or other is None:
            return None
        turned = self.turned[b] or b""
        own = int.from_bytes(mine, "big")
        copies = [other, *(turned[at : at + self.width] for at in range(0, len(turned), self.width))]
        return min((own ^ int.from_bytes(copy, "big")).bit_count() for copy in copies)

    def _cosine_bits(self, a: int, b: int) -> int | None:
        if self.place[a] < 0 or self.place[b] < 0:
            return None
        one, other = (self.vectors[self.place[row]].astype(np.float32) for row in (a, b))
        cosine = float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12)
        return round((1 - cosine) * self.scale)

    def spread(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """At most so many bits are between any two rows of each component; FAR where only looking at them can tell."""
        sizes = np.diff(starts, append=len(rows))
        if self.scale or any(self.turned):
            return np.where(sizes > 2, FAR, 0)  # a turned pair, or one by its cosine, may be near without equal bits
        words = np.frombuffer(b"".join(self.hashes[row] or bytes(self.width) for row in rows.tolist()), np.uint64).reshape(-1, max(1, self.width // 8)).T
        return spread_of(words, np.arange(len(rows)), starts)
