"""levels: a score in levels of equal count or equal width, with their edges (AlignGPT, Zhao et al. 2024, arXiv 2405.14129: CLIP scores in 8 levels).

A pair that fits badly is kept with a low level, which a model is told, in place of being cut. How AlignGPT's authors cut their 8 levels is not published:
equal counts are chosen here, equal width is an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from pipeline import stage as machine
from pipeline.errors import Fatal
from pipeline.stage import Evidence, Stage, decides
from stages.balancing.groups import quoted

if TYPE_CHECKING:
    import duckdb


class LevelsParams(machine.Params):
    """What is cut, and how."""

    column: str = decides("clip_score", "column of the score")
    count: int = decides(8, "levels, 0 the lowest (AlignGPT: 8)", ge=2, le=100)
    by: Literal["count", "width"] = decides("count", "count: levels of equally many rows; width: of equal width between the least and the highest score")
    edges: tuple[float, ...] | None = decides(None, "edges of another run (count + 1 rising numbers, its manifest's facts.levels) in place of cutting anew")

    @field_validator("edges")
    @classmethod
    def _rises(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (len(value) < 3 or any(b < a for a, b in pairwise(value))):
            raise ValueError("edges must be at least 3 numbers that do not fall")
        return value


def level_of(scores: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Levels int8 [N] of scores: the number of inner edges at or below each; what lies beyond the outer edges is in the outer levels."""
    return np.searchsorted(np.asarray(edges[1:-1]), scores, side="right").astype(np.int8)


class Levels(Stage):
    """Turns a score into a level, 0 to count - 1, that a training can be told. Drops nothing; a row without a score has no level.

    The edges (count + 1: the least score, the first score of each further level, the highest) stand in the resolved files' footer and in the dataset's
    manifest under `facts`, and give the same levels again through `edges`. Equal scores are always in one level, so that many of them make it larger.
    """

    name: ClassVar[str] = "levels"
    version: ClassVar[int] = 1
    Params = LevelsParams
    params: LevelsParams
    resolves = {"level": pa.int8()}

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return (self.params.column,)

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where the column holds no numbers."""
        machine.check_number(f"stages.{self.instance}.column", self.params.column, available)

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con = evidence.con
        score = f"CAST({quoted(self.params.column)} AS DOUBLE)"
        con.execute(f'CREATE OR REPLACE VIEW level_scores AS SELECT part, "row", {score} AS score FROM rows WHERE isfinite({score})')
        edges = list(self.params.edges) if self.params.edges else self._edges(con)
        if not edges:
            return con.sql('SELECT part, "row", CAST(NULL AS TINYINT) AS level FROM rows LIMIT 0')
        evidence.facts["levels"] = {"column": self.params.column, "edges": edges}
        inner = " + ".join(f"(score >= {edge!r})::TINYINT" for edge in edges[1:-1])
        return con.sql(f'SELECT part, "row", ({inner})::TINYINT AS level FROM level_scores')

    def _edges(self, con: duckdb.DuckDBPyConnection) -> list[float]:
        """Edges of all scores; [] where there are none."""
        count = self.params.count
        [(rows, low, high)] = con.execute("SELECT count(*), min(score), max(score) FROM level_scores").fetchall()
        if not rows:
            return []
        if self.params.by == "width":
            return [low, *(low + (high - low) * nth / count for nth in range(1, count)), high]
        places = sorted({-(-nth * rows // count) for nth in range(1, count)} - {rows})
        ordered = "SELECT score, row_number() OVER (ORDER BY score) - 1 AS place FROM level_scores"
        found = con.execute(f"SELECT score FROM ({ordered}) WHERE place IN (SELECT unnest(?)) ORDER BY place", [places]).fetchall()
        at = dict(zip(places, (score for (score,) in found), strict=True))
        if len(at) != len(places):
            raise Fatal(f"{self.instance}: {len(at)} of {len(places)} edges were found")
        return [low, *(at.get(-(-nth * rows // count), high) for nth in range(1, count)), high]
