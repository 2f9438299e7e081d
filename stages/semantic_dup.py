"""semantic_dup: all pairs of images whose stored embeddings are near (SemDeDup, Abbas et al. 2023, section 3). `dedup` decides on them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Evidence, Params, Stage, Vector, decides
from stages.vectors.blocks import blocks, draw
from stages.vectors.kmeans import load_faiss
from stages.vectors.near import NearSearch

if TYPE_CHECKING:
    import duckdb

SEMANTIC = pa.struct(
    [
        ("vector", pa.list_(pa.float32())),
        ("within", pa.float32()),
        ("pairs", pa.list_(pa.struct([("part", pa.int32()), ("row", pa.int32()), ("cosine", pa.float32())]))),
    ]
)


class SemanticDupParams(Params):
    """Which embeddings are compared, and how far."""

    embeddings: str = decides("image_emb", "column of embeddings, such as image_emb or clip_score.image_emb")
    search_cosine: float = decides(0.9, "pairs whose cosine is at least this are found and stored", ge=0.5, le=1)
    probes: int = decides(16, "nearest clusters that a row is compared with, where a near row may lie beyond their borders", ge=1, le=1024)
    clusters: int | None = decides(None, "clusters of k-means; null: 4 times the root of the number of rows, one below 8,192 rows", ge=1)


class SemanticDup(Stage):
    """Finds pairs of stored embeddings with at least a cosine. Drops nothing: `dedup`, put behind it, decides.

    Rows with equal vectors are one in the search. k-means (faiss, fitted on a seeded sample) cuts the rest into clusters; a row is compared with its own and,
    where a near row may lie beyond the border, with others among its `probes` nearest: all pairs are found where no row has more such borders, nearly
    all else. `semantic_evidence` holds the cosine searched and, on rows that have a pair, the vector and the pairs with later rows. `dedup.min_cosine`
    moves above `search_cosine` without a search. A clump (nearly all rows of a cluster near each other) is stored by a spanning forest.
    """

    name: ClassVar[str] = "semantic_dup"
    version: ClassVar[int] = 1
    Params = SemanticDupParams
    params: SemanticDupParams
    resolves = {"semantic_evidence": SEMANTIC}

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return (self.params.embeddings,)

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError where the column holds no vectors, or faiss is not installed."""
        kind = available.get(self.params.embeddings)
        if kind is not None and not isinstance(kind, Vector):
            raise RecipeError(f"stages.{self.instance}: embeddings {self.params.embeddings!r} is no column of vectors")
        load_faiss()

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """One search; pairs and the vectors of the rows that have one go to DuckDB."""
        con, column = evidence.con, self.params.embeddings
        con.execute("CREATE OR REPLACE TABLE semantic_found (a BIGINT, b BIGINT, cosine FLOAT)")
        con.execute("CREATE OR REPLACE TABLE semantic_vectors (key BIGINT, vector FLOAT[])")
        with tempfile.TemporaryDirectory(prefix="pairmill-semantic-", dir=evidence.scratch) as folder:
            search = NearSearch(
                con, lambda: blocks(evidence.vectors(column)), lambda count: draw(evidence, column, count, f"{evidence.seed}:{self.instance}"),
                self.params.search_cosine, Path(folder), self.params.probes, self.params.clusters, evidence.seed,
            )  # fmt: skip
            for pairs in search.pairs():
                _insert(con, "semantic_found", {"a": pairs.left, "b": pairs.right, "cosine": pairs.cosine})
        con.execute("CREATE OR REPLACE TABLE semantic_edges AS SELECT a, b, max(cosine) AS cosine FROM semantic_found GROUP BY a, b")
        self._keep_vectors(evidence)
        pair = "{'part': CAST(b // 4294967296 AS INTEGER), 'row': CAST(b % 4294967296 AS INTEGER), 'cosine': cosine}"
        return con.sql(
            f"""
            SELECT r.part, r."row", {{'vector': v.vector, 'within': CAST({self.params.search_cosine} AS FLOAT), 'pairs': e.pairs}} AS semantic_evidence
            FROM rows r LEFT JOIN (SELECT a, list({pair} ORDER BY b) AS pairs FROM semantic_edges GROUP BY a) e ON e.a = r.part::BIGINT * 4294967296 + r."row"
            LEFT JOIN semantic_vectors v ON v.key = r.part::BIGINT * 4294967296 + r."row"
            """
        )

    def _keep_vectors(self, evidence: Evidence) -> None:
        """Vectors of the rows that have a pair, for `dedup`."""
        linked = evidence.con.sql("SELECT DISTINCT unnest([a, b]) AS key FROM semantic_edges ORDER BY key").to_arrow_table()["key"].to_numpy()
        for block in blocks(evidence.vectors(self.params.embeddings)):
            mine = np.isin(block.keys, linked, assume_unique=True)
            if mine.any():
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.vectors[mine].astype(np.float32).ravel()), block.vectors.shape[1])
                _insert(evidence.con, "semantic_vectors", {"key": block.keys[mine], "vector": vectors.cast(pa.list_(pa.float32()))})


def _insert(con: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, np.ndarray | pa.Array]) -> None:
    con.register("semantic_incoming", pa.table(dict(columns)))
    con.execute(f"INSERT INTO {table} SELECT * FROM semantic_incoming")
    con.unregister("semantic_incoming")
