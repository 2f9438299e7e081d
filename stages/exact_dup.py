"""exact_dup: of rows whose images are the same bytes one stays, with the texts of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from pipeline import stage as machine
from pipeline.stage import Evidence, Row, Stage, decides
from schemas.outcome import Drop, Reason
from schemas.sample import TEXTS
from stages.sql_texts import TEXTS_SQL, has_column, texts_of_row

if TYPE_CHECKING:
    import duckdb


class Params(machine.Params):
    max_texts: int = decides(32, "most texts that a kept row has after it took over those of its duplicates", ge=1)


class ExactDup(Stage):
    """Keeps one row of those with equal `raw_sha256` (the bytes as fetched) and gives it the texts of all.

    The keeper is the row with the highest clip_score (rows without one last), then the most pixels, then the least
    sample_id. Its `texts` are those of all rows, each text once, best clip_score first; without scores its own come
    first, then those of the others in the same order as the rows are ranked. `source` names the row a text came from.
    `dup_component` is the keeper's id for every row of a component, the keeper too; null for a row without duplicates.
    """

    name: ClassVar[str] = "exact_dup"
    Params = Params
    reads_resolve = ("raw_sha256", "clip_score?", "texts|text|alt_text", "width?", "height?")
    resolves = {"dup_of": pa.string(), "kind": pa.string(), "dup_component": pa.string(), "texts": TEXTS}

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        keeper = resolved.get("dup_of")
        return Drop(Reason.EXACT_DUP, keeper) if keeper else None

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Only rows whose bytes stand more than once are ranked."""
        con = evidence.con
        score = "clip_score" if has_column(con, "clip_score") else "NULL"
        pixels = "width::BIGINT * height" if has_column(con, "width") and has_column(con, "height") else "NULL"
        con.execute(
            f"""
            CREATE OR REPLACE TABLE exact_dup_ranked AS
            WITH ranked AS (
                SELECT part, "row", sample_id, raw_sha256, {texts_of_row(con)} AS texts,
                    row_number() OVER (PARTITION BY raw_sha256 ORDER BY
                        CAST({score} AS FLOAT) DESC NULLS LAST, {pixels} DESC NULLS LAST, sample_id, part, "row") AS nth
                FROM rows WHERE raw_sha256 IN (SELECT raw_sha256 FROM rows WHERE raw_sha256 IS NOT NULL GROUP BY raw_sha256 HAVING count(*) > 1)
            )
            SELECT *, lower(hex(first_value(sample_id) OVER (PARTITION BY raw_sha256 ORDER BY nth))) AS keeper
            FROM ranked
            """
        )
        return con.sql(self._joined(texts_of_row(con, "r")))

    def _joined(self, own_texts: str) -> str:
        return f"""
            WITH entries AS (
                SELECT raw_sha256, sample_id, nth, unnest(range(1, len(texts) + 1)) AS place, unnest(texts) AS e
                FROM exact_dup_ranked
            ), named AS (
                SELECT raw_sha256, nth, place, {{'kind': e.kind, 'text': e.text,
                    'source': CASE WHEN coalesce(e.source, '') = '' THEN lower(hex(sample_id)) ELSE e.source END,
                    'model': e.model, 'prompt': e.prompt, 'clip_score': e.clip_score}} AS e
                FROM entries
            ), first_of_text AS (
                SELECT * FROM named
                QUALIFY row_number() OVER (PARTITION BY raw_sha256, e.text ORDER BY e.clip_score DESC NULLS LAST, nth, place) = 1
            ), placed AS (
                SELECT *, row_number() OVER (PARTITION BY raw_sha256 ORDER BY e.clip_score DESC NULLS LAST, nth, place) AS rank
                FROM first_of_text
            ), joined AS (
                SELECT raw_sha256, list(e ORDER BY rank) AS texts FROM placed WHERE rank <= {self.params.max_texts} GROUP BY raw_sha256
            )
            SELECT r.part, r."row", CASE WHEN d.nth > 1 THEN d.keeper END AS dup_of,
                CASE WHEN d.nth > 1 THEN 'bytes' END AS kind, d.keeper AS dup_component,
                CASE WHEN d.nth = 1 THEN CAST(j.texts AS {TEXTS_SQL}) ELSE {own_texts} END AS texts
            FROM rows r
            LEFT JOIN exact_dup_ranked d ON r.part = d.part AND r."row" = d."row"
            LEFT JOIN joined j ON d.raw_sha256 = j.raw_sha256 AND d.nth = 1
        """
