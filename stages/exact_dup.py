"""exact_dup: of rows whose images are the same bytes one stays, with the texts of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from pipeline import stage as machine
from pipeline.errors import RecipeError
from pipeline.reason_columns import is_null, reason_column
from pipeline.stage import Evidence, Row, Stage, decides
from schemas.outcome import Drop, Reason
from schemas.sample import TEXTS
from stages.dups.keeper import groups_by, keepers

if TYPE_CHECKING:
    import duckdb


class Params(machine.Params):
    join_texts: bool = decides(True, "a kept row takes over the texts of its duplicates; false: it keeps its own alone")
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

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError behind near_dup or semantic_dup: two stages would each choose keepers."""
        for column, stage in (("near_evidence", "near_dup"), ("semantic_evidence", "semantic_dup")):
            if column in available:
                raise RecipeError(f"stages.{self.instance}: {stage} stands before it; put `dedup` here, which decides on equal bytes and near images at once")

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        keeper = resolved.get("dup_of")
        return Drop(Reason.EXACT_DUP, keeper) if keeper else None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        return reason_column(len(columns["dup_of"]), [(~is_null(columns["dup_of"]), Reason.EXACT_DUP)])

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Only rows whose bytes stand more than once are ranked."""
        groups_by(evidence.con, "raw_sha256", "dup_groups")
        return keepers(evidence.con, self.params.max_texts if self.params.join_texts else None, "clip_score")
