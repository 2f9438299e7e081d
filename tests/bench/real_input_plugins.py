"""The one stage of the experiment on real photos that the product does not have: joins the scores of two cross-fitted models."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from pipeline.stage import Evidence, Stage


class CrossScore(Stage):
    """Each row's place among its half by the score of the model that was trained on the other half: 0 worst, 1 best.

    The two models' scores have scales of their own, places have not. Row i of half 0 was seen by `score_a`, so that `score_b` judges it.
    """

    name: ClassVar[str] = "cross_score"
    reads_resolve = ("half", "score_a.clip_score", "score_b.clip_score")
    resolves = {"cross_score": pa.float64()}

    def resolve(self, evidence: Evidence):
        unseen = 'CASE WHEN half = 0 THEN "score_b.clip_score" ELSE "score_a.clip_score" END'
        return evidence.con.sql(
            f'SELECT part, "row", percent_rank() OVER (PARTITION BY half ORDER BY unseen) AS cross_score '
            f'FROM (SELECT part, "row", half, {unseen} AS unseen FROM rows) WHERE unseen IS NOT NULL'
        )
