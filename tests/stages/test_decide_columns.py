"""decide and decide_columns say the same of random values, values on the thresholds and nulls; an expression over columns is what it is over rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.reason_columns import rounded, rounded_above, rounded_below
from pipeline.stage import Stage
from schemas.outcome import Reason
from stages.balance import Balance
from stages.clip_score import ClipScore
from stages.decontaminate import Decontaminate
from stages.dedup import Dedup
from stages.exact_dup import ExactDup
from stages.expression import Expression
from stages.mllm_score import ASPECTS, MllmScore
from stages.repeated_text import RepeatedText
from stages.select import Select
from stages.url_dup import UrlDup

ROWS = 400


def floats(draw: random.Random, around: list[float], spread: float) -> pa.Array:
    """float32: some on the numbers given, some a hair beside them, some anywhere, nulls and NaN."""
    def one() -> float | None:
        at = draw.choice(around)
        return draw.choice([at, at + draw.choice([-1, 1]) * 10 ** draw.uniform(-8, -3), draw.uniform(-spread, spread), None, float("nan")])

    return pa.array([one() for _ in range(ROWS)], pa.float32())


def texts(draw: random.Random, choices: list[str | None]) -> pa.Array:
    return pa.array([draw.choice(choices) for _ in range(ROWS)], pa.string())


def cases(draw: random.Random) -> list[tuple[Stage, dict[str, pa.Array]]]:
    scores = {"clip_score": floats(draw, [0.28, 0.3, 0.35], 1)}
    aspects = {aspect: floats(draw, [66, 20, 85], 100) for aspect in ASPECTS}
    dups = {"dup_of": texts(draw, ["ab", None]), "distance": pa.array([draw.choice([None, 3]) for _ in range(ROWS)], pa.int16())}
    dups["kind"] = pa.array([draw.choice(["bytes", "near"]) if keeper else None for keeper in dups["dup_of"].to_pylist()])
    urls = {"url_dup_reason": texts(draw, [None, Reason.SAME_URL, Reason.DUPLICATE_ROW]), "n_same_url": pa.array([2] * ROWS), "url_keeper": texts(draw, ["ab"])}
    counts = {"least_n_text": pa.array([draw.choice([None, 0, 9, 10, 11, 500]) for _ in range(ROWS)], pa.int32())}
    cuts = {"score": floats(draw, [0.3], 1), "lang": texts(draw, ["en", "de", None]), "cut_reason": texts(draw, [None, None, Reason.BELOW_CUT])}
    cuts["cut_detail"] = cuts["cut_reason"]
    contaminated = {f"contam_{kind}": texts(draw, ["set/1", None, None]) for kind in ("bytes", "image", "emb", "text")}
    contaminated |= {"contam_agreement": floats(draw, [0.6], 1), "contam_cosine": floats(draw, [0.95], 1), "contam_overlap": floats(draw, [1.0], 1)}
    contaminated["contam_distance"] = pa.array([3] * ROWS, pa.int16())
    return [
        (ClipScore(ClipScore.Params(min=draw.choice([0.28, 0.3]), max=draw.choice([None, 0.35]))), scores),
        (ClipScore(ClipScore.Params(min=None)), scores),
        (ClipScore(ClipScore.Params(keep_without_text=True)), scores),
        (MllmScore(MllmScore.Params(model="m", thresholds=draw.choice(["open_qwen2vl", "mlm_filter", {}]))), aspects),
        (Dedup(Dedup.Params()), dups),
        (ExactDup(ExactDup.Params()), dups),
        (UrlDup(UrlDup.Params()), urls),
        (RepeatedText(RepeatedText.Params(max_count=10)), counts),
        (Decontaminate(Decontaminate.Params(against=("set",), embeddings=True, min_overlap=None)), contaminated),
        (Balance(Balance.Params(caps=[{"by": "lang", "max": 3}])), {"balance_reason": cuts["cut_reason"], "balance_detail": cuts["cut_reason"]}),
        (Select(Select.Params(where="score >= 0.3 and lang in ['en']", top_fraction={"column": "score", "fraction": 0.5})), cuts),
        (Select(Select.Params(top_fraction={"column": "score", "fraction": 0.5})), cuts),
        (Select(Select.Params(where="not (score < 0.3) or lang is null")), {name: cuts[name] for name in ("score", "lang")}),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_columns_are_judged_as_rows_are(seed: int) -> None:
    for stage, columns in cases(random.Random(seed)):
        rows = pa.table(columns).to_pylist()
        one_by_one = [drop and str(drop.reason) for drop in (stage.decide(row, row) for row in rows)]
        told = stage.decide_columns(columns)
        assert told is not None and told.to_pylist() == one_by_one, stage.name
        assert len(set(one_by_one)) > 1 or stage.name == "mllm_score"


def test_rounding_is_pythons() -> None:
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.uniform(-1, 1, 20_000), np.arange(-2000, 2000) / 2000 / 10, [np.inf, -np.inf, np.nan, 1e300, 2.5, 0.00005]])
    values = np.concatenate([values, values.astype(np.float32).astype(np.float64)])
    for digits in (2, 4):
        assert np.array_equal(rounded(values, digits), [round(value, digits) for value in values.tolist()], equal_nan=True)
        for limit in (0.28, -0.05, 0, 66):
            near = np.concatenate([values, limit + np.arange(-300, 300) * 10.0**-digits / 100]).astype(np.float32)
            each = np.array([round(value, digits) for value in near.tolist()])
            assert np.array_equal(rounded_below(near, digits, limit), each < limit) and np.array_equal(rounded_above(near, digits, limit), each > limit)


COLUMNS: dict[str, list[Any]] = {
    "x": [0.5, -1.5, None, float("nan"), 0.0, 3.25, float("inf")],
    "n": [0, 3, -7, None, 12, 2**40, 5],
    "m": [2, 0, 3, 4, None, 2**30, -5],
    "text": ["a b", "", None, "äö", "b", "abc", "B"],
    "yes": [True, False, None, True, False, None, True],
    "tags": [["a"], [], None, ["b", "c"], [], ["a"], ["x"]],
}
ATOMS = [
    "x > 0.5", "x >= n", "n != 3", "n % 4 == 3", "x % 2 < 1", "n / m > 0", "n * m > 6", "n - m < x", "-n > 2", "abs(n) > 4", "text < 'b'", "text == 'B'",
    "text not in ['b']", "n in [3, 5, null]", "yes", "not yes", "x is null", "text is not null", "length(text) > 1", "length(tags) == 1", "x > -1",
    "contains(text, 'b')", "starts_with(text, 'a')", "ends_with(text, 'c')", "x == null", "yes == true",
    "text in ['b', 'abc']", "lower(text) == 'b'", "max(n, m) > 3", "true",
]  # fmt: skip


def test_expressions_over_columns_are_those_over_rows() -> None:
    table = pa.table(COLUMNS)
    rows, columns = table.to_pylist(), {name: table[name].combine_chunks() for name in table.column_names}
    draw, by_columns = random.Random(1), 0
    made = [*ATOMS, *(f"({draw.choice(ATOMS)}) {draw.choice(['and', 'or'])} not ({draw.choice(ATOMS)})" for _ in range(400))]
    for source in made:
        expression = Expression(source)
        told = expression.passing(columns, len(rows))
        if told is not None:
            by_columns += 1
            assert told.tolist() == [expression(row) for row in rows], source
    assert by_columns > 0.6 * len(made)
