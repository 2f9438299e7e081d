"""Which links hold between rows that look alike: pHashes near enough, thumbnails that agree (SQL over `rows` and the table dup_matches)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from stages.dups.keeper import ROW_KEY
from stages.dups.links import Links

if TYPE_CHECKING:
    import duckdb


def seen_alike(con: duckdb.DuckDBPyConnection, links: Links, most: int) -> Links:
    """Those links whose two rows have pHashes at most `most` bits apart: the same picture, not just the same thing. Rows without a hash have none."""
    con.execute(f"CREATE OR REPLACE TABLE dup_seen AS SELECT {ROW_KEY} AS key, CAST(phash AS BIT) AS bits FROM rows WHERE semantic_evidence.vector IS NOT NULL")
    return _those(con, links, f"JOIN dup_seen one ON one.key = a JOIN dup_seen other ON other.key = b WHERE bit_count(xor(one.bits, other.bits)) <= {most}")


def keep_matches(con: duckdb.DuckDBPyConnection) -> None:
    """Table dup_matches (a, b, match, difference): the pairs that crop_dup stored, a before b, both alive."""
    con.execute(
        f"""
        CREATE OR REPLACE TABLE dup_matches AS
        SELECT a, b, p.match AS match, p.difference AS difference
        FROM (SELECT a, p, p.part::BIGINT * 4294967296 + p."row" AS b
              FROM (SELECT {ROW_KEY} AS a, unnest(crop_evidence.pairs) AS p FROM rows WHERE crop_evidence.pairs IS NOT NULL))
        SEMI JOIN (SELECT {ROW_KEY} AS b FROM rows) USING (b)
        """
    )


def matched_links(con: duckdb.DuckDBPyConnection, least: float, most: float, bits: int) -> Links:
    """Pairs of dup_matches that match by at least `least` and differ by at most `most` grey levels, so measured that the least match counts as `bits`."""
    scale = bits / max(1 - least, 1e-4)
    found = con.sql(
        f"""
        SELECT a, b, CAST(round((1 - match) * {scale}) AS BIGINT) AS distance FROM dup_matches
        WHERE round(match, 4) >= {least} AND round(difference, 2) <= {most} ORDER BY a, b
        """
    ).to_arrow_table()
    return Links(*(found[name].to_numpy() for name in ("a", "b", "distance")))


def same_pictures(con: duckdb.DuckDBPyConnection, links: Links, most: float) -> Links:
    """Those links whose two rows stand in dup_matches, in the one order or the other, and differ by at most `most` grey levels."""
    pairs = f"(SELECT a, b FROM dup_matches WHERE round(difference, 2) <= {most}) m"
    return _those(con, links, f"SEMI JOIN {pairs} ON m.a = least(dup_links.a, dup_links.b) AND m.b = greatest(dup_links.a, dup_links.b)")


def _those(con: duckdb.DuckDBPyConnection, links: Links, joined: str) -> Links:
    """Links that are left after `joined` (SQL), in their order."""
    con.register("dup_links", pa.table({"a": links.left, "b": links.right, "nth": np.arange(len(links))}))
    kept = np.sort(con.sql(f"SELECT nth FROM dup_links {joined}").to_arrow_table()["nth"].to_numpy())
    con.unregister("dup_links")
    return Links(links.left[kept], links.right[kept], links.distance[kept])
