"""Pairs of embeddings whose cosine is at least a threshold: k-means, then products within each cluster and with rows from beyond its borders.

1. Rows with equal vectors are one in the search.
2. Every row belongs to its nearest centroid, and visits some more clusters: of its `probes` nearest those where a near row may be. The plane between
   two centroids a and b lies (x.a - x.b) / |a - b| from a unit vector x on a's side (the sine of an angle); a row on b's side within the angle t of x needs
   that to be at most sin t (triangle inequality on the sphere). So a border is left out only where no pair can lie across it; pairs are missed
   only where both rows have more than `probes` such borders, and then rarely: the nearest centroids come first.
3. Vectors are written to a scratch file in the order of the clusters. Each cluster is multiplied with itself and its visitors, tile by tile in float32
   (few CPUs multiply float16), and the cosine of what is found is computed again, so that it does not depend on the shape of a tile.

A tile in which nearly everything is near (a clump: placeholder pictures, encoded in many ways) gives its greatest spanning forest in place of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash

from stages.dups.components import greatest_forest
from stages.vectors.blocks import Block, unit
from stages.vectors.kmeans import fit_centroids, good_count, in_order, nearest, products_above

if TYPE_CHECKING:
    import duckdb

PER_CENTROID = 40  # rows of the sample for each cluster
LARGEST = 16_384  # clusters with more rows are split
SPLITS = 2  # rounds of splitting: what is still large then is one clump, which no centroid can divide
TILE = 2048
CLUMP_DEGREE = 32  # a tile whose rows have more near ones than this on average is a clump
SLACK = 1e-3  # products in float32 of any shape are nearer than this to the cosine


@dataclass(frozen=True)
class VectorPairs:
    """Pairs of rows: keys left < right (int64 [N]) and their cosine (float32 [N], rounded to 1e-4)."""

    left: np.ndarray
    right: np.ndarray
    cosine: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


@dataclass
class NearSearch:
    """One search. `read` gives all rows anew at each call; `draw` a sample of about so many, float32 [N, D] of length 1; `scratch` is a folder for one file.

    Memory: some 60 bytes a row, the centroids, the sample, and a few tiles; the tables in `con` may spill.
    """

    con: duckdb.DuckDBPyConnection
    read: Callable[[], Iterator[Block]]
    draw: Callable[[int], np.ndarray]
    cosine: float
    scratch: Path
    probes: int = 16
    clusters: int | None = None
    seed: int = 0
    # After the search: clusters of the distinct rows in the order of the input, and rows with more borders to look across than `probes`.
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    crowded: int = 0

    def pairs(self) -> Iterator[VectorPairs]:
        """Each pair at least once (a pair across a border may come twice), then rows with equal vectors, each paired with the first of them."""
        twins, rows = self._twins()
        if rows:
            centroids = self._centroids(rows)
            labels = self._assign(centroids, twins)
            for _ in range(SPLITS):
                large = np.flatnonzero(np.bincount(labels, minlength=len(centroids)) > LARGEST)
                if not len(large):
                    break
                centroids = self._split(centroids, labels, large, twins)
                labels = self._assign(centroids, twins)
            self.labels = labels
            yield from self._search(labels, twins, len(centroids))
        yield from self._equal()

    def _twins(self) -> tuple[np.ndarray, int]:
        """Keys (sorted int64) of rows whose vector an earlier row has, and the number of the others; 128-bit digests stand for vectors."""
        self.con.execute("CREATE OR REPLACE TABLE vector_digests (key BIGINT, low UBIGINT, high UBIGINT)")
        total = 0
        for block in self._read():
            raw = block.vectors.tobytes()
            step = len(raw) // len(block)
            digests = b"".join(xxhash.xxh3_128_digest(raw[at : at + step]) for at in range(0, len(raw), step))
            halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
            self._insert("vector_digests", pa.table({"key": block.keys, "low": halves[:, 0].copy(), "high": halves[:, 1].copy()}))
            total += len(block)
        self.con.execute(
            """
            CREATE OR REPLACE TABLE vector_twins AS SELECT first, key FROM (SELECT key, min(key) OVER (PARTITION BY low, high) AS first FROM vector_digests
            WHERE (low, high) IN (SELECT (low, high) FROM vector_digests GROUP BY low, high HAVING count(*) > 1)) WHERE key > first
            """
        )
        self.con.execute("DROP TABLE vector_digests")
        twins = np.sort(self.con.sql("SELECT key FROM vector_twins").to_arrow_table()["key"].to_numpy())
        return twins, total - len(twins)

    def _read(self) -> Iterator[Block]:
        """Blocks without the rows whose vector has no direction: zeros, or a number that is not finite."""
        for block in self.read():
            good = np.isfinite(block.vectors).all(axis=1) & block.vectors.any(axis=1)
            if good.any():
                yield block if good.all() else Block(block.keys[good], block.vectors[good])

    def _insert(self, table: str, rows: pa.Table) -> None:
        self.con.register("vector_incoming", rows)
        self.con.execute(f"INSERT INTO {table} SELECT * FROM vector_incoming")
        self.con.unregister("vector_incoming")

    def _equal(self) -> Iterator[VectorPairs]:
        found = self.con.sql("SELECT first, key FROM vector_twins ORDER BY key").to_arrow_table()
        yield VectorPairs(found["first"].to_numpy(), found["key"].to_numpy(), np.ones(len(found), np.float32))

    def _distinct(self, twins: np.ndarray) -> Iterator[Block]:
        for block in self._read():
            own = ~np.isin(block.keys, twins, assume_unique=True)
            yield Block(block.keys[own], unit(block.vectors[own]))

    def _centroids(self, rows: int) -> np.ndarray:
        count = min(rows, self.clusters or good_count(rows))
        return fit_centroids(self.draw(PER_CENTROID * count), count, seed=self.seed)

    def _assign(self, centroids: np.ndarray, twins: np.ndarray) -> np.ndarray:
        """The cluster of each distinct row (int32 [N], in the order of the input); which clusters it visits goes into the table vector_visits."""
        self.con.execute("CREATE OR REPLACE TABLE vector_visits (cluster INTEGER, row BIGINT)")
        sine = float(np.sqrt(1 - self.cosine**2)) + SLACK
        labels: list[np.ndarray] = []
        rows = self.crowded = 0
        for places, across in in_order(self._distinct(twins), lambda block: _borders(block.vectors, centroids, self.probes, sine)):
            labels.append(places[:, 0])
            at, nth = np.nonzero(across)
            self._insert("vector_visits", pa.table({"cluster": places[:, 1:][at, nth], "row": rows + at}))
            self.crowded += int(across[:, -1].sum()) if across.shape[1] == self.probes - 1 < len(centroids) - 1 and self.probes > 1 else 0
            rows += len(places)
        return np.concatenate(labels)

    def _split(self, centroids: np.ndarray, labels: np.ndarray, large: np.ndarray, twins: np.ndarray) -> np.ndarray:
        """Centroids in which each large cluster has several in place of its one."""
        sizes = np.bincount(labels, minlength=len(centroids))
        counts = {int(place): -(-int(sizes[place]) * 4 // LARGEST) for place in large}
        step = {place: max(1, int(sizes[place]) // (PER_CENTROID * count)) for place, count in counts.items()}
        found: dict[int, list[np.ndarray]] = {place: [] for place in counts}
        seen, rows = dict.fromkeys(counts, 0), 0
        for block in self._distinct(twins):
            mine = labels[rows : rows + len(block)]
            rows += len(block)
            for place in np.intersect1d(mine, large).tolist():
                members = np.flatnonzero(mine == place)
                found[place].append(block.vectors[members[(np.arange(len(members)) + seen[place]) % step[place] == 0]])
                seen[place] += len(members)
        pieces = [fit_centroids(np.concatenate(found[place]), count, seed=self.seed) for place, count in counts.items()]
        return np.concatenate([np.delete(centroids, large, axis=0), *pieces])

    def _search(self, labels: np.ndarray, twins: np.ndarray, clusters: int) -> Iterator[VectorPairs]:
        order = np.argsort(labels, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=clusters))])
        vectors, keys = self._by_cluster(place, twins)

        def work(task: tuple[int, np.ndarray]) -> VectorPairs:
            cluster, visitors = task
            left, right, cosine = _in_cluster(vectors, int(starts[cluster]), int(starts[cluster + 1]), np.sort(place[visitors]), self.cosine)
            ends = np.sort(np.stack([keys[left], keys[right]]), axis=0)
            return VectorPairs(ends[0], ends[1], cosine)

        yield from (found for found in in_order(self._visitors(clusters), work) if len(found))

    def _by_cluster(self, place: np.ndarray, twins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the distinct rows in the order of the clusters (float32 [N, D], a file), and their keys."""
        keys = np.empty(len(place), np.int64)
        file: np.ndarray | None = None
        rows = 0
        for block in self._distinct(twins):
            if file is None:
                file = np.memmap(self.scratch / "vectors.f32", np.float32, "w+", shape=(len(place), block.vectors.shape[1]))
            mine = place[rows : rows + len(block)]
            rows += len(block)
            file[mine], keys[mine] = block.vectors, block.keys
        assert file is not None
        return file, keys

    def _visitors(self, clusters: int) -> Iterator[tuple[int, np.ndarray]]:
        """Each cluster with the rows that visit it."""
        self.con.execute("SET preserve_insertion_order=true")  # DuckDB 2.0 lets even an ordered answer come out of order without it
        reader = self.con.cursor().sql("SELECT cluster, row FROM vector_visits ORDER BY cluster, row").to_arrow_reader(1 << 20)
        rest, following = [np.empty(0, np.int64)], 0
        for batch in reader:
            cluster, rows = batch.column(0).to_numpy(), batch.column(1).to_numpy()
            edges = np.searchsorted(cluster, np.arange(following, int(cluster[-1]) + 1) if len(cluster) else np.arange(0))
            for start, stop in zip(edges, edges[1:], strict=False):
                yield following, np.concatenate([*rest, rows[start:stop]])
                rest, following = [], following + 1
            rest.append(rows[edges[-1] :] if len(edges) else rows)
        for cluster_ in range(following, clusters):
            yield cluster_, np.concatenate(rest or [np.empty(0, np.int64)])
            rest = []


def _borders(vectors: np.ndarray, centroids: np.ndarray, probes: int, sine: float) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroids of each row (int32 [N, probes]) and, for those after the first, whether a near row may lie beyond the border (bool [N, probes - 1])."""
    places, cosines = nearest(vectors, centroids, probes)
    across = np.empty((len(places), places.shape[1] - 1), bool)
    for start in range(0, len(places), 512):  # centroids of some rows at a time
        own, others = centroids[places[start : start + 512, 0]], centroids[places[start : start + 512, 1:]]
        apart = np.sqrt(np.maximum(2 - 2 * np.einsum("nd,npd->np", own, others), 1e-12))
        across[start : start + 512] = cosines[start : start + 512, :1] - cosines[start : start + 512, 1:] <= sine * apart
    return places, across


def _in_cluster(vectors: np.ndarray, start: int, stop: int, visitors: np.ndarray, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near pairs (places in `vectors`, cosine) of a cluster's rows with each other and with its visitors."""
    found = []
    for top in range(start, stop, TILE):
        own = np.asarray(vectors[top : min(top + TILE, stop)])
        for first in range(top, stop, TILE):
            rows = np.arange(first, min(first + TILE, stop))
            found.append(_in_tile(vectors, own, top, rows, own if first == top else np.asarray(vectors[rows]), cosine))
        for first in range(0, len(visitors), TILE):
            rows = visitors[first : first + TILE]
            found.append(_in_tile(vectors, own, top, rows, vectors[rows], cosine))
    left, right, near = (np.concatenate([one[nth] for one in found]) if found else np.empty(0, np.int64) for nth in range(3))
    return left, right, near.astype(np.float32)


def _in_tile(vectors: np.ndarray, own: np.ndarray, top: int, rows: np.ndarray, others: np.ndarray, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near pairs between `own` [N, D], which stand at `top`, and `others` [M, D], which stand at `rows`."""
    limits, near, nth = products_above(own, others, cosine - SLACK)
    left, right = np.repeat(np.arange(top, top + len(own)), np.diff(limits)), rows[nth]
    if len(rows) and rows[0] == top:  # the tile with itself: each pair once
        once = left < right
        left, right, near = left[once], right[once], near[once]
    if len(left) > CLUMP_DEGREE * (len(own) + len(rows)):
        kept = greatest_forest(left, right, np.round(near, 4))
        left, right = left[kept], right[kept]
    near = np.empty(len(left), np.float32)
    for some in range(0, len(left), TILE):
        ends = vectors[left[some : some + TILE]].astype(np.float64), vectors[right[some : some + TILE]].astype(np.float64)
        near[some : some + TILE] = np.round(np.einsum("ij,ij->i", *ends), 4)
    good = near >= np.float32(cosine)
    return left[good], right[good], near[good]
