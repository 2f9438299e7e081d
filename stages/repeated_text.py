"""repeated_text: drops texts that many URLs carry, such as 'image may contain' or a shop's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from pipeline import stage as machine
from pipeline.reason_columns import is_true, reason_column
from pipeline.stage import Evidence, Row, Stage, decides, tunes
from schemas.outcome import Drop, Reason
from stages.presets import preset as find_preset
from stages.sql_texts import rows_with_url_key, text_key, texts_of_row

if TYPE_CHECKING:
    import duckdb


class Params(machine.Params):
    preset: str | None = tunes(None, "take max_count from a published dataset's rules: filip, wukong")
    max_count: int = decides(10, "most distinct URLs that may carry one text", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not raw.get("preset"):
            return raw
        count = find_preset(str(raw["preset"])).max_count
        return raw if count is None else {"max_count": count, **raw}


class RepeatedText(Stage):
    """Drops a row when each of its texts is carried by more than `max_count` distinct URLs.

    Texts are compared in NFC and lower case with white space folded, URLs as in url_dup. `n_text` is the number of
    distinct URLs that carry the row's first text, `least_n_text` the smallest such number over its texts. Empty texts
    are not counted (0 where all are empty): text_rules drops those. `texts` stays as it is, so that a moved `max_count`
    changes the input of no later stage.
    Source: FILIP and Wukong drop texts seen more than 10 times (second-hand figure, see stages/presets.py).
    """

    name: ClassVar[str] = "repeated_text"
    Params = Params
    reads_resolve = ("url", "texts|alt_text")
    resolves = {"n_text": pa.int32(), "least_n_text": pa.int32()}

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        least = resolved.get("least_n_text") or 0
        return Drop(Reason.REPEATED_TEXT, f"{least} URLs carry it, at most {self.params.max_count}") if least > self.params.max_count else None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        least = columns["least_n_text"]
        return reason_column(len(least), [(is_true(pc.greater(least, self.params.max_count)), Reason.REPEATED_TEXT)])

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con = evidence.con
        con.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE repeated_text_entries AS
            WITH listed AS (SELECT part, "row", url_key, {texts_of_row(con, "k")} AS texts FROM {rows_with_url_key()} k)
            SELECT part, "row", url_key, unnest(range(1, len(texts) + 1)) AS place, unnest(texts) AS entry FROM listed
            """
        )
        return con.sql(
            f"""
            WITH keyed AS (
                SELECT part, "row", url_key, place, {text_key("entry.text")} AS text_key, trim(entry.text) = '' AS is_empty
                FROM repeated_text_entries
            ), counts AS (
                SELECT text_key, CAST(count(*) AS INTEGER) AS n
                FROM (SELECT DISTINCT text_key, url_key FROM keyed WHERE NOT is_empty) GROUP BY text_key
            ), counted AS (
                SELECT k.part, k."row", k.place, k.is_empty, coalesce(c.n, 0) AS n FROM keyed k LEFT JOIN counts c USING (text_key)
            )
            SELECT part, "row", min(n) FILTER (WHERE place = 1) AS n_text, coalesce(min(n) FILTER (WHERE NOT is_empty), 0) AS least_n_text
            FROM counted GROUP BY part, "row"
            """
        )
