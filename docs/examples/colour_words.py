"""A stage of one's own in one file: counts colour words in the text and keeps rows that have enough of them.

    pairmill run docs/examples/colours.yaml --import docs/examples/colour_words.py --set input.table=pairs.csv --out RUN
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline import stage as machine
from pipeline.stage import Context, Row, Stage, Values, decides
from schemas.outcome import Drop, Failure, FailureCode, Reason

WORD = re.compile(r"[^\W\d_]+")


class Params(machine.Params):
    # A plain field takes part in `compute`: changing it counts every row again.
    colours: tuple[str, ...] = Field(("red", "green", "blue", "yellow", "black", "white"), description="words that count, in lower case", min_length=1)
    # Fields made by decides() are read by `decide` alone: changing them runs no `compute`.
    min_words: int = decides(1, "fewest colour words kept", ge=0)


class ColourWords(Stage):
    """Counts the colour words of a text and drops rows with fewer than `min_words`."""

    name: ClassVar[str] = "colour_words"
    version: ClassVar[int] = 1  # raise it when `compute` begins to give other values
    Params = Params
    reads = ("text|alt_text",)  # the normalised text where a stage before writes one, else the text as read
    writes: Mapping[str, pa.DataType] = {"n_colour_words": pa.int32(), "colours": pa.list_(pa.string())}
    params: Params

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Measure every row, whatever the threshold; one answer per row, in order."""
        wanted = set(self.params.colours)
        answers: list[Values | Failure] = []
        for row in rows:
            text = row["text"]  # the key is the first name in `reads`
            if text is None:
                answers.append(Failure(FailureCode.BAD_ROW, "the row has no text"))
                continue
            found = [word for word in WORD.findall(text.lower()) if word in wanted]
            answers.append({"n_colour_words": len(found), "colours": sorted(set(found))})
        return answers

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Judge one row from what is stored; pure, so that it can be repeated at any time."""
        if row["n_colour_words"] < self.params.min_words:
            return Drop(Reason.CUSTOM, f"{row['n_colour_words']} colour words, fewer than {self.params.min_words}")
        return None
