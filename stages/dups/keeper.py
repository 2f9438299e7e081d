"""One row of each component stays and takes over the texts of the others: SQL over `rows` and a table of components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.sql_texts import TEXTS_SQL, has_column, texts_of_row

if TYPE_CHECKING:
    import duckdb

KeeperBy = Literal["clip_score", "pixels"]
ROW_KEY = 'part::BIGINT * 4294967296 + "row"'  # a row of the run as one number, in the order of the input


def keepers(con: duckdb.DuckDBPyConnection, max_texts: int | None, by: KeeperBy) -> duckdb.DuckDBPyRelation:
    """part, row, dup_of, kind, dup_component and texts of every row; max_texts None: each row has its own texts alone.

    Reads `rows` and the table `dup_groups` (part, row, component, near BIGINT; rows without duplicates are left out; `near` is the part of the component
    that holds without semantic links). The keeper comes first by clip_score (rows
    without one last), then the most pixels, then the least sample_id; with by='pixels' pixels come before the score. `kind` is 'bytes' for a row whose bytes
    a better row of its component has, 'near' where a better row stands in its `near` part, else 'semantic'; null for keepers.
    """
    score = "CAST(clip_score AS FLOAT)" if has_column(con, "clip_score") else "CAST(NULL AS FLOAT)"
    pixels = "width::BIGINT * height" if has_column(con, "width") and has_column(con, "height") else "NULL"
    first, second = (score, pixels) if by == "clip_score" else (pixels, score)
    order = f'{first} DESC NULLS LAST, {second} DESC NULLS LAST, sample_id, part, "row"'
    con.execute(
        f"""
        CREATE OR REPLACE TABLE dup_ranked AS
        WITH ranked AS (
            SELECT part, "row", sample_id, component, {texts_of_row(con)} AS texts, row_number() OVER (PARTITION BY component ORDER BY {order}) AS nth,
                raw_sha256 IS NOT NULL AND row_number() OVER (PARTITION BY component, raw_sha256 ORDER BY {order}) > 1 AS same_bytes,
                row_number() OVER (PARTITION BY component, near ORDER BY {order}) > 1 AS is_near
            FROM rows JOIN dup_groups USING (part, "row")
        )
        SELECT *, lower(hex(first_value(sample_id) OVER (PARTITION BY component ORDER BY nth))) AS keeper FROM ranked
        """
    )
    return con.sql(_joined(texts_of_row(con, "r"), max_texts) if max_texts else _apart(texts_of_row(con, "r")))


_FATE = """r.part, r."row", CASE WHEN d.nth > 1 THEN d.keeper END AS dup_of,
            CASE WHEN d.nth > 1 THEN CASE WHEN d.same_bytes THEN 'bytes' WHEN d.is_near THEN 'near' ELSE 'semantic' END END AS kind,
            d.keeper AS dup_component"""


def _apart(own_texts: str) -> str:
    return f"""SELECT {_FATE}, {own_texts} AS texts FROM rows r LEFT JOIN dup_ranked d ON r.part = d.part AND r."row" = d."row" """


def _joined(own_texts: str, max_texts: int) -> str:
    """Every row; those of a component with their keeper, and the keeper with the texts of all."""
    return f"""
        WITH entries AS (
            SELECT component, sample_id, nth, unnest(range(1, len(texts) + 1)) AS place, unnest(texts) AS e
            FROM dup_ranked
        ), named AS (
            SELECT component, nth, place, {{'kind': e.kind, 'text': e.text,
                'source': CASE WHEN coalesce(e.source, '') = '' THEN lower(hex(sample_id)) ELSE e.source END,
                'model': e.model, 'prompt': e.prompt, 'clip_score': e.clip_score}} AS e
            FROM entries
        ), first_of_text AS (
            SELECT * FROM named
            QUALIFY row_number() OVER (PARTITION BY component, e.text ORDER BY e.clip_score DESC NULLS LAST, nth, place) = 1
        ), placed AS (
            SELECT *, row_number() OVER (PARTITION BY component ORDER BY e.clip_score DESC NULLS LAST, nth, place) AS rank
            FROM first_of_text
        ), joined AS (
            SELECT component, list(e ORDER BY rank) AS texts FROM placed WHERE rank <= {max_texts} GROUP BY component
        )
        SELECT {_FATE},
            CASE WHEN d.nth = 1 THEN CAST(j.texts AS {TEXTS_SQL}) ELSE {own_texts} END AS texts
        FROM rows r
        LEFT JOIN dup_ranked d ON r.part = d.part AND r."row" = d."row"
        LEFT JOIN joined j ON d.component = j.component AND d.nth = 1
    """


def groups_by(con: duckdb.DuckDBPyConnection, column: str, table: str) -> None:
    """Table of part, row, component and near: the rows whose `column` (SQL) another row has too; component and near are the first row's number."""
    con.execute(
        f"""
        CREATE OR REPLACE TABLE {table} AS
        SELECT part, "row", min({ROW_KEY}) OVER (PARTITION BY {column}) AS component, component AS near
        FROM rows WHERE {column} IN (SELECT {column} FROM rows WHERE {column} IS NOT NULL GROUP BY {column} HAVING count(*) > 1)
        """
    )
