"""nearest_texts: for each image the texts of a file that are most like it, found in two steps (RealSyn, Gu et al. 2025, arXiv 2502.12513, section 3.2)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from pipeline import stage as machine
from pipeline.errors import Fatal
from pipeline.stage import Evidence, Stage, decides, tunes
from schemas.sample import TEXTS, make_text
from stages.file_digests import file_sha256
from stages.vectors.blocks import blocks, check_vectors, unit
from stages.vectors.by_cluster import ByCluster, by_cluster
from stages.vectors.kmeans import fit_centroids, nearest
from stages.vectors.text_vectors import TextVectors

if TYPE_CHECKING:
    import duckdb

ROWS = 8192  # images of a cluster that are compared together


class NearestTextsParams(machine.Params):
    """Where the texts are, and how many an image gets."""

    texts: str = decides(..., "Parquet file of texts and their embeddings, of the model whose image embeddings are compared: columns text and embedding")
    embeddings: str = decides("image_emb", "vector column of the images")
    top: int = decides(3, "texts that an image gets (RealSyn: 3)", ge=1, le=100)
    min_cosine: float | None = decides(None, "texts less like the image are left out; null: none is", ge=-1, le=1)
    count: int | None = decides(None, "clusters of the texts (RealSyn: 2,000,000 for 840 million); null: 4 x the square root of the texts", ge=1)
    rows_per_cluster: int = decides(64, "texts that the centroids are fitted on, for each cluster", ge=1)
    iterations: int = decides(20, "rounds of k-means", ge=1)
    seed: int = decides(0, "another seed draws another sample and other first centroids")
    threads: int | None = tunes(None, "rows are put into clusters by so many threads; null: the cores at hand, at most 8", ge=1)
    texts_sha256: str = decides("", "filled in by itself: digest of the file")

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not raw.get("texts"):
            return raw
        return {**raw, "texts_sha256": file_sha256(str(raw["texts"]), "nearest_texts.texts", raw.get("texts_sha256"))}


class NearestTexts(Stage):
    """Gives each image the `top` texts of the cluster of texts that it is nearest to, by cosine. Drops nothing.

    The texts are clustered (k-means of their embeddings); an image goes to the cluster whose centroid it is nearest to, and only the texts of that one are
    compared with it: texts beyond its border are missed. Images without an embedding get none. `nearest_texts` has the texts, the most alike first, with the
    cosine as `clip_score` and kind `retrieved`; `nearest_text` is the first of them, `text_cluster` the cluster. Vectors lie on disk in the order of the
    clusters; the texts are held in memory.
    """

    name: ClassVar[str] = "nearest_texts"
    version: ClassVar[int] = 1
    Params = NearestTextsParams
    params: NearestTextsParams
    resolves = {"nearest_text": pa.string(), "nearest_texts": TEXTS, "text_cluster": pa.int32()}

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return (self.params.embeddings,)

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where the column holds no vectors."""
        check_vectors(self.instance, self.params.embeddings, available)

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con, texts = evidence.con, TextVectors(self.params.texts)
        con.execute('CREATE OR REPLACE TABLE texts_near (part INTEGER, "row" INTEGER, text_cluster INTEGER, places INTEGER[], cosines FLOAT[])')
        with tempfile.TemporaryDirectory(dir=evidence.scratch) as folder:
            centroids = self._centroids(texts, evidence.seed)
            lines = by_cluster(texts.blocks, centroids, Path(folder) / "texts", self.params.threads)
            keys = np.concatenate([np.empty(0, np.int64), *(block.keys for block in blocks(evidence.vectors(self.params.embeddings)))])
            images = by_cluster(lambda: self._images(evidence, centroids.shape[1]), centroids, Path(folder) / "images", self.params.threads)
            for cluster, places, cosines, rows in self._pairs(images, lines):
                self._insert(con, cluster, places, cosines, keys[rows])
        evidence.facts["nearest_texts"] = {"texts": len(texts), "clusters": len(centroids)}
        return con.sql(self._answer(con, texts))

    def _centroids(self, texts: TextVectors, seed: int) -> np.ndarray:
        params = self.params
        count = params.count or max(1, round(4 * math.sqrt(len(texts))))
        sample = texts.sample(count * params.rows_per_cluster, seed * 1_000_003 + params.seed)
        return fit_centroids(sample, min(count, len(sample)), seed=seed * 1_000_003 + params.seed, iterations=params.iterations)

    def _images(self, evidence: Evidence, width: int) -> Iterator[np.ndarray]:
        for block in blocks(evidence.vectors(self.params.embeddings)):
            if block.vectors.shape[1] != width:
                raise Fatal(f"{self.instance}: the images' embeddings have {block.vectors.shape[1]} numbers, those of {self.params.texts} {width}: two models")
            yield unit(block.vectors)

    def _pairs(self, images: ByCluster, lines: ByCluster) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """cluster, numbers of the nearest texts (int64 [n, k]), their cosines (float32 [n, k]), numbers of the images (int64 [n])."""
        for cluster in np.flatnonzero(np.diff(images.starts)).tolist():
            (vectors, rows), (own, numbers) = images.cluster(cluster), lines.cluster(cluster)
            for start in range(0, len(rows), ROWS):
                some = vectors[start : start + ROWS]
                if len(own):
                    places, cosines = nearest(some, own, self.params.top)
                else:
                    places, cosines = np.empty((len(some), 0), np.int64), np.empty((len(some), 0), np.float32)
                yield cluster, numbers[places], cosines, rows[start : start + ROWS]

    def _insert(self, con: duckdb.DuckDBPyConnection, cluster: int, places: np.ndarray, cosines: np.ndarray, keys: np.ndarray) -> None:
        """Lines of texts_near; texts below `min_cosine` are left out."""
        cosines = np.round(cosines, 4)
        good = cosines >= (-2 if self.params.min_cosine is None else self.params.min_cosine)
        offsets = pa.array(np.concatenate([[0], np.cumsum(good.sum(axis=1))]), pa.int32())
        columns = {"part": (keys >> 32).astype(np.int32), "row": (keys & 0xFFFFFFFF).astype(np.int32), "text_cluster": np.full(len(keys), cluster, np.int32)}
        lists = {"places": places[good].astype(np.int32), "cosines": cosines[good]}
        con.register("texts_incoming", pa.table(columns | {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in lists.items()}))
        con.execute("INSERT INTO texts_near SELECT * FROM texts_incoming")
        con.unregister("texts_incoming")

    @staticmethod
    def _answer(con: duckdb.DuckDBPyConnection, texts: TextVectors) -> str:
        used = con.sql("SELECT DISTINCT unnest(places) AS place FROM texts_near ORDER BY place").to_arrow_table()["place"].to_numpy()
        con.register("texts_incoming", pa.table({"place": used, "text": texts.of(used)}))
        con.execute("CREATE OR REPLACE TABLE texts_used AS SELECT * FROM texts_incoming")
        con.unregister("texts_incoming")
        given = {"kind": "'retrieved'", "text": "u.text", "clip_score": "n.cosine"}
        entry = ", ".join(f"'{name}': {given.get(name, chr(39) * 2)}" for name in make_text(""))
        return f"""
            SELECT t.part, t."row", f.found[1].text AS nearest_text, coalesce(f.found, []) AS nearest_texts, t.text_cluster FROM texts_near t LEFT JOIN (
                SELECT n.part, n."row", list({{{entry}}} ORDER BY n.nth) AS found
                FROM (SELECT part, "row", unnest(places) AS place, unnest(cosines) AS cosine, generate_subscripts(places, 1) AS nth FROM texts_near) n
                JOIN texts_used u USING (place) GROUP BY n.part, n."row"
            ) f USING (part, "row")
        """
