"""corrupt: swaps the texts of a known share of rows, so that any score column can be measured against known negatives."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from pipeline import stage as machine
from pipeline.stage import Evidence, Stage, decides
from schemas.sample import TEXTS
from stages.sql_texts import TEXTS_SQL, texts_of_row

if TYPE_CHECKING:
    import duckdb


class Params(machine.Params):
    eta: float = decides(0.05, "share of the live rows whose texts are swapped; exactly floor(eta * rows)", ge=0, le=1)
    seed: int = decides(0, "another seed swaps other rows")


class Corrupt(Stage):
    """Gives exactly floor(eta * n) of n live rows the texts of another of them (`donor`), the rest their own.

    Which rows is drawn by a hash of sample_id and seed. Among them the texts are deranged: no row keeps its own row's
    texts, and none gets an equal first text as long as no text is carried by more than half of them. A single chosen row
    takes the texts of the row next in the draw that has another text. With one live row nothing is swapped.
    Source: Slight Corruption in Pre-training Data Makes Better Diffusion Models (image-text swaps at ratio eta).
    """

    name: ClassVar[str] = "corrupt"
    Params = Params
    reads_resolve = ("texts|text|alt_text",)
    resolves = {"text": pa.string(), "texts": TEXTS, "donor": pa.string(), "corrupted": pa.bool_()}

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con = evidence.con
        seed = f"{evidence.seed}:{self.params.seed}"
        first = "texts[1].text"
        con.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE corrupt_drawn AS
            SELECT *, {first} AS first_text,
                row_number() OVER (ORDER BY md5('{seed}:draw:' || hex(sample_id)), part, "row") - 1 AS drawn
            FROM (SELECT part, "row", sample_id, {texts_of_row(con)} AS texts FROM rows)
            """
        )
        rows = _one(con, "SELECT count(*) FROM corrupt_drawn")
        chosen = math.floor(Fraction(str(self.params.eta)) * rows)
        donors = self._donor_of_one() if chosen == 1 else self._derangement(con, chosen, seed)
        return con.sql(
            f"""
            WITH pairs AS ({donors})
            SELECT d.part, d."row", coalesce(o.texts, d.texts)[1].text AS text, CAST(coalesce(o.texts, d.texts) AS {TEXTS_SQL}) AS texts,
                lower(hex(o.sample_id)) AS donor, o.drawn IS NOT NULL AS corrupted
            FROM corrupt_drawn d LEFT JOIN pairs p USING (drawn) LEFT JOIN corrupt_drawn o ON o.drawn = p.donor
            """
        )

    def _derangement(self, con: duckdb.DuckDBPyConnection, chosen: int, seed: str) -> str:
        """Rows sorted so that equal texts stand together, then moved on by the size of the largest such group."""
        con.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE corrupt_sorted AS
            SELECT drawn, row_number() OVER (ORDER BY md5('{seed}:group:' || coalesce(first_text, '')), first_text, drawn) - 1 AS place
            FROM corrupt_drawn WHERE drawn < {chosen}
            """
        )
        query = f"SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM corrupt_drawn WHERE drawn < {chosen} GROUP BY first_text)"
        shift = min(_one(con, query), max(chosen - 1, 0))
        return f"""
            SELECT a.drawn, b.drawn AS donor FROM corrupt_sorted a JOIN corrupt_sorted b
            ON b.place = (a.place + {shift}) % {max(chosen, 1)}
        """

    def _donor_of_one(self) -> str:
        return """
            SELECT 0 AS drawn, o.drawn AS donor FROM corrupt_drawn o, corrupt_drawn d
            WHERE d.drawn = 0 AND o.drawn > 0 ORDER BY o.first_text IS NOT DISTINCT FROM d.first_text, o.drawn LIMIT 1
        """


def _one(con: duckdb.DuckDBPyConnection, query: str) -> int:
    """First value of a query. fetchall, since a result not read to its end keeps the connection busy."""
    return int(con.execute(query).fetchall()[0][0])
