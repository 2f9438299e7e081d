"""clusters: k-means of stored embeddings, and of each row the nearest centroids (MLCD, An et al. 2024, arXiv 2407.17331: the 8 nearest of a million).

Their ids are the labels of MLCD's objective, the groups of RealSyn's caps (`balance.caps` by `cluster`), and a measure of what a dataset shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline import stage as machine
from pipeline.stage import Evidence, Stage, decides, tunes
from stages.vectors.blocks import Block, blocks, check_vectors, draw, unit
from stages.vectors.kmeans import fit_centroids, in_order, nearest

if TYPE_CHECKING:
    import duckdb


class ClustersParams(machine.Params):
    """What is clustered, and into how many."""

    embeddings: str = decides("image_emb", "vector column that is clustered: image_emb, text_emb, or one of a named stage such as clip_score.image_emb")
    count: int | None = decides(None, "clusters (MLCD, RealSyn: 1,000,000 for hundreds of millions of rows); null: 4 x the square root of the rows", ge=1)
    top: int = decides(8, "nearest clusters of each row that are stored (MLCD: 8); fewer where there are fewer clusters", ge=1, le=64)
    rows_per_cluster: int = decides(64, "rows of the sample that the centroids are fitted on, for each cluster", ge=1)
    iterations: int = decides(20, "rounds of k-means", ge=1)
    seed: int = decides(0, "another seed draws another sample and other first centroids")
    threads: int | None = tunes(None, "rows are assigned by so many threads; null: the cores at hand, at most 8", ge=1)


class Clusters(Stage):
    """Puts each row with an embedding into its nearest cluster by cosine. Drops nothing; a row without an embedding has no cluster.

    `cluster` is the nearest, `clusters` the `top` nearest, nearest first, `cluster_cosine` the cosine of the nearest. Cluster 0 has the most rows of the
    whole corpus, and so on, so that a number says how common a cluster is. The centroids are fitted by faiss on a sample drawn by hash of sample_id.
    """

    name: ClassVar[str] = "clusters"
    version: ClassVar[int] = 1
    Params = ClustersParams
    params: ClustersParams
    resolves = {"cluster": pa.int32(), "clusters": pa.list_(pa.int32()), "cluster_cosine": pa.float32()}

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return (self.params.embeddings,)

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where the column holds no vectors."""
        check_vectors(self.instance, self.params.embeddings, available)

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con, params = evidence.con, self.params
        count = params.count or max(1, round(4 * math.sqrt(evidence.alive)))
        seed = f"{evidence.seed}:{params.seed}"
        sample = draw(evidence, params.embeddings, count * params.rows_per_cluster, f"{seed}:clusters")
        for table in ("cluster_found", "cluster_ranked"):
            con.execute(f"CREATE OR REPLACE TABLE {table} (key BIGINT, places INTEGER[], cosine FLOAT)")
        if len(sample):
            centroids = fit_centroids(sample, min(count, len(sample)), seed=evidence.seed * 1_000_003 + params.seed, iterations=params.iterations)
            self._assign(evidence, centroids)
            self._rank(con, len(centroids))
        evidence.facts["clusters"] = {"count": min(count, len(sample)), "sample": len(sample)}
        return con.sql(
            """
            SELECT CAST(key // 4294967296 AS INTEGER) AS part, CAST(key % 4294967296 AS INTEGER) AS "row", places[1] AS cluster, places AS clusters,
                cosine AS cluster_cosine FROM cluster_ranked
            """
        )

    def _rank(self, con: duckdb.DuckDBPyConnection, count: int) -> None:
        """Fill cluster_ranked: cluster_found with the clusters numbered from the one with the most rows on."""
        sizes = con.sql("SELECT places[1] AS place, count(*) AS n FROM cluster_found GROUP BY place").to_arrow_table()
        rows = np.zeros(count, np.int64)
        rows[sizes["place"].to_numpy()] = sizes["n"].to_numpy()
        rank = np.empty(count, np.int32)
        rank[np.argsort(-rows, kind="stable")] = np.arange(count, dtype=np.int32)
        for batch in con.cursor().sql("SELECT * FROM cluster_found").to_arrow_reader(1 << 20):
            lists = batch.column(1)
            ranked = pa.ListArray.from_arrays(lists.offsets, pa.array(rank[lists.values.to_numpy()]))
            self._insert(con, "cluster_ranked", pa.table({"key": batch.column(0), "places": ranked, "cosine": batch.column(2)}))

    def _assign(self, evidence: Evidence, centroids: np.ndarray) -> None:
        """Fill cluster_found (key, places of the nearest centroids, cosine of the first); rows of zeros are left out."""
        con, top = evidence.con, min(self.params.top, len(centroids))

        def work(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            vectors = unit(block.vectors)
            places, cosines = nearest(vectors, centroids, top)
            good = vectors.any(axis=1)
            return block.keys[good], places[good], np.round(cosines[good, 0], 4)

        for keys, places, cosines in in_order(blocks(evidence.vectors(self.params.embeddings)), work, self.params.threads):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(places.ravel()), top).cast(pa.list_(pa.int32()))
            self._insert(con, "cluster_found", pa.table({"key": keys, "places": lists, "cosine": cosines}))

    @staticmethod
    def _insert(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
        con.register("cluster_incoming", rows)
        con.execute(f"INSERT INTO {table} SELECT * FROM cluster_incoming")
        con.unregister("cluster_incoming")
