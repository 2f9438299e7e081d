"""url_dup: rows with the same URL become one row that has all their texts, so that each URL is fetched once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from pipeline import stage as machine
from pipeline.errors import RecipeError
from pipeline.stage import Evidence, Row, Stage, decides
from schemas.outcome import Drop, Reason
from schemas.sample import TEXTS
from stages.sql_texts import TEXTS_SQL, rows_with_url_key, text_entry

if TYPE_CHECKING:
    import duckdb


class Params(machine.Params):
    max_texts: int = decides(
        32, "most texts that a kept row takes over, the first in the input; a placeholder image may have millions", ge=1
    )


class UrlDup(Stage):
    """Keeps the first row of the input for every URL.

    Two URLs are the same when they agree after white space is stripped, scheme and host are in lower case, and default port
    and fragment are left out; path and query count as they are. A later row with a text that the URL already had is dropped
    as duplicate_row, one with another text as same_url: its text joins the `texts` of the kept row, in the order of the
    input, with its sample_id as `source`.
    """

    name: ClassVar[str] = "url_dup"
    Params = Params
    reads_resolve = ("url", "alt_text")
    resolves = {
        "n_same_url": pa.int32(),
        "url_keeper": pa.string(),
        "url_dup_reason": pa.string(),  # null for the row that stays
        "texts": TEXTS,
    }

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where rows have several texts already: url_dup would leave the row's own alt-text alone of them."""
        if "texts" in available:
            raise RecipeError(f"stages.{self.instance}: it makes `texts` of the alt-texts, and rows have `texts` already: put it first, or leave it out")

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        reason = resolved.get("url_dup_reason")
        return (
            Drop(reason, f"{resolved['n_same_url']} rows have this URL; kept: {resolved['url_keeper']}")
            if reason
            else None
        )

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        return columns["url_dup_reason"]

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Only rows whose URL stands more than once go through the windows: most of a crawl does not."""
        con = evidence.con
        con.execute(f'CREATE OR REPLACE TABLE url_dup_keyed AS SELECT part, "row", url_key FROM {rows_with_url_key()}')
        con.execute(
            """
            CREATE OR REPLACE TABLE url_dup_placed AS
            SELECT *,
                CAST(count(*) OVER (PARTITION BY url_key) AS INTEGER) AS n_same_url,
                first_value(sample_id) OVER (PARTITION BY url_key ORDER BY part, "row") AS keeper,
                row_number() OVER (PARTITION BY url_key ORDER BY part, "row") AS nth,
                row_number() OVER (PARTITION BY url_key, text ORDER BY part, "row") AS nth_of_text
            FROM (
                SELECT part, "row", url_key, sample_id, coalesce(alt_text, '') AS text
                FROM url_dup_keyed JOIN rows USING (part, "row")
                WHERE url_key IN (SELECT url_key FROM url_dup_keyed GROUP BY url_key HAVING count(*) > 1)
            )
            """
        )
        entry = text_entry("coalesce(r.alt_text, '')", "r.sample_id")
        own = f"CAST([{entry}] AS {TEXTS_SQL})"
        return con.sql(
            f"""
            WITH distinct_texts AS (
                SELECT *, row_number() OVER (PARTITION BY url_key ORDER BY part, "row") AS nth_text
                FROM url_dup_placed WHERE nth_of_text = 1
            ), joined AS (
                SELECT url_key, list({text_entry("text", "sample_id")} ORDER BY part, "row") AS texts
                FROM distinct_texts WHERE nth_text <= {self.params.max_texts} GROUP BY url_key
            ), shared AS (
                SELECT p.part, p."row", p.n_same_url, p.keeper, p.nth, p.nth_of_text, j.texts
                FROM url_dup_placed p LEFT JOIN joined j ON p.nth = 1 AND j.url_key = p.url_key
            )
            SELECT r.part, r."row", coalesce(s.n_same_url, 1) AS n_same_url, lower(hex(coalesce(s.keeper, r.sample_id))) AS url_keeper,
                CASE WHEN coalesce(s.nth, 1) = 1 THEN NULL WHEN s.nth_of_text = 1 THEN '{Reason.SAME_URL}' ELSE '{Reason.DUPLICATE_ROW}' END
                    AS url_dup_reason,
                CASE WHEN coalesce(s.nth, 1) = 1 THEN coalesce(CAST(s.texts AS {TEXTS_SQL}), {own}) END AS texts
            FROM rows r LEFT JOIN shared s ON s.part = r.part AND s."row" = r."row"
            """
        )
