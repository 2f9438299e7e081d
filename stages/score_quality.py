"""Job `score_quality`: how well score columns tell the rows that `corrupt` swapped from those it left alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.errors import Fatal, RecipeError
from pipeline.files import commit_bytes
from pipeline.run_view import RunView
from pipeline.stage import Job, Params
from stages.measure import auc, precision_at_keep


class ScoreQualityParams(Params):
    columns: list[str] = Field(["clip_score"], description="score columns, higher is better", min_length=1)
    corrupted: str = Field("corrupted", description="boolean column that the stage corrupt writes")
    keep_ratio: float = Field(0.3, description="share of rows kept for the precision", gt=0, le=1)


class ScoreQuality(Job):
    """AUC and precision at the keep ratio of score columns on rows corrupted on purpose (Slight corruption, paper 33).

    Writes `measure/<name>.json`. Only rows with a score and a flag count; their number stands beside the figures.
    """

    name = "score_quality"
    Params = ScoreQualityParams

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        params = self.params
        if not run.chain.has_column(params.corrupted):
            raise RecipeError(f"jobs.{self.instance}: no stage writes {params.corrupted!r}; put `corrupt` before the scores")
        scores: dict[str, list[float]] = {name: [] for name in params.columns}
        flags: dict[str, list[bool]] = {name: [] for name in params.columns}
        for part in range(len(run.parts)):
            table = run.read(run.view(part), [*params.columns, params.corrupted])
            flag = table[params.corrupted].to_pylist()
            for name in params.columns:
                for score, bad in zip(table[name].to_pylist(), flag, strict=True):
                    if score is not None and bad is not None:
                        scores[name].append(score)
                        flags[name].append(bad)
        try:
            found = {name: self._measure(np.asarray(scores[name]), np.asarray(flags[name], bool)) for name in params.columns}
        except ValueError as error:
            raise Fatal(f"{self.instance}: {error}") from error
        path = run.root / "measure" / f"{self.instance}.json"
        commit_bytes(path, json.dumps(found, indent=1, sort_keys=True).encode(), run.store.guard)
        return found

    def _measure(self, scores: np.ndarray, flags: np.ndarray) -> dict[str, float]:
        return {
            "rows": len(scores),
            "corrupted": int(flags.sum()),
            "auc": round(auc(scores, flags), 4),
            "precision_at_keep": round(precision_at_keep(scores, flags, self.params.keep_ratio), 4),
        }
