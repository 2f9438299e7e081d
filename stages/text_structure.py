"""text_structure: drops English texts that say nothing of a thing, or in which nothing happens (RealSyn's rule of complexity and action, after DiHT).

RealSyn (arXiv 2502.12513) keeps sentences of complexity 1 or more with an action [paper]; the parser behind it is not known, see stages/text/structure.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from pipeline import stage as machine
from pipeline.stage import Context, Row, Stage, Values, decides
from schemas.outcome import Drop, Failure, Reason
from stages.chat_rows import best_text
from stages.text.structure import structure

ENGLISH = "en"


class TextStructureParams(machine.Params):
    """What a text must have."""

    min_complexity: int | None = decides(1, "fewest relations on one object: adjectives, number, what is said of it (low_complexity); null: no limit", ge=0)
    action: bool = decides(True, "drop texts without a full verb (no_action)")


class TextStructure(Stage):
    """Measures the best text of a row (the first of its texts). Where `text_rules` found another language than English, the row is not judged and stays."""

    name: ClassVar[str] = "text_structure"
    version: ClassVar[int] = 1
    Params = TextStructureParams
    params: TextStructureParams
    reads = ("texts|text|alt_text", "lang?")
    writes = {"complexity": pa.int32(), "n_actions": pa.int32()}
    batch_size = 1000
    seconds_per_row = 5e-4

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Both counts of each row; nulls for another language than English."""
        results: list[Values | Failure] = []
        for row in rows:
            if row["lang"] not in (None, ENGLISH):
                results.append({"complexity": None, "n_actions": None})
                continue
            found = structure(best_text(row) or "")
            results.append({"complexity": found.complexity, "n_actions": found.actions})
        return results

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """low_complexity below `min_complexity`, then no_action."""
        complexity, least = row["complexity"], self.params.min_complexity
        if complexity is None:
            return None
        if least is not None and complexity < least:
            return Drop(Reason.LOW_COMPLEXITY, f"{complexity} < {least}")
        if self.params.action and not row["n_actions"]:
            return Drop(Reason.NO_ACTION, "no full verb")
        return None
