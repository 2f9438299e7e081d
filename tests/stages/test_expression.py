from __future__ import annotations

import itertools
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline.errors import RecipeError
from stages.expression import Expression

ROW: dict[str, Any] = {
    "clip_score": 0.3, "n_words": 12, "lang": "en", "text": "A red Car", "missing": None, "yes": True, "no": False,
    "sample_id": bytes.fromhex("00ff"), "caption_short.n_words": 5, "tags": ["a", "b"], "odd name": 3, "nan": float("nan"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("clip_score >= 0.28 and n_words < 40 and lang in ['en', 'de']", True),
        ("clip_score >= 0.3", True),
        ("clip_score > 0.3", False),
        ("n_words = 12", True),
        ("n_words <> 12", False),
        ("not n_words == 12", False),
        ("no or yes and yes", True),
        ("(yes or yes) and no", False),
        ("yes or yes and no", True),
        ("1 + 2 * 3 == 7", True),
        ("(1 + 2) * 3 == 9", True),
        ("-2 - -3 == 1", True),
        ("8 / 4 / 2 == 1", True),
        ("7 % 4 == 3", True),
        ("1.5e1 == 15", True),
        ("lang not in ('de', \"fr\")", True),
        ("length(text) == 9", True),
        ("length(tags) == 2", True),
        ("contains(lower(text), 'red car')", True),
        ("starts_with(text, 'A ') and ends_with(upper(text), 'CAR')", True),
        ("abs(0 - n_words) == 12", True),
        ("max(1, n_words, 3) == 12 and min(4, 5) == 4", True),
        ("caption_short.n_words == 5", True),
        ("`odd name` == 3", True),
        ("sample_id == '00ff'", True),
        ("text == 'it\\'s'", False),
        ("true", True),
        # null: nothing compared with it passes, and its negation does not either
        ("missing > 1", False),
        ("not (missing > 1)", False),
        ("missing == null", False),
        ("missing is null", True),
        ("n_words is not null", True),
        ("is_null(missing + 1)", True),
        ("missing > 1 or yes", True),
        ("yes or missing > 1", True),
        ("missing > 1 and no", False),
        ("not (missing > 1 and no)", True),
        ("not (no and missing > 1)", True),
        ("missing in [1, 2]", False),
        ("not (missing in [1, 2])", False),
        ("coalesce(missing, n_words, 3) == 12", True),
        ("is_null(1 / 0)", True),
        ("nan > 0 or nan <= 0", False),
    ],
)
def test_value_of_an_expression(source: str, expected: bool) -> None:
    assert Expression(source)(ROW) is expected


def test_three_valued_logic_agrees_with_a_database() -> None:
    names = {"true": True, "false": False, "null": None}
    con = duckdb.connect()
    for a, b, c in itertools.product(names, repeat=3):
        for source in (f"({a} and {b}) or not {c}", f"not ({a} or {b}) and {c}", f"({a} = {b}) or {c}"):
            typed = source.replace("null", "null::BOOLEAN")
            (value,) = con.execute(f"SELECT {typed}").fetchall()[0]
            assert Expression(source)({}) is (value is True), source


def test_columns_are_found_in_order_and_once() -> None:
    assert Expression("b > 1 and length(`a c`) > b and x.y in [z]").columns == ("b", "a c", "x.y", "z")


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("clip_score >=", 14, "expected a column"),
        ("clip_score >= 0.3 lang", 19, "after the end"),
        ("a == 'open", 6, "closing quote"),
        ("a ; b", 3, "unexpected ';'"),
        ("(a > 1", 7, "expected ')'"),
        ("lenght(a) > 1", 1, "did you mean 'length'"),
        ("contains(a)", 1, "takes 2 arguments, found 1"),
        ("1 < a < 3", 7, "cannot be chained"),
        ("a in 3", 6, "expected a list"),
        ("a not 3", 7, "expected 'in'"),
        ("a is 3", 6, "expected 'null'"),
        ("__import__('os')", 1, "no function"),
        ("a.b()", 1, "no function"),
        ("", 1, "expected a column"),
    ],
)
def test_syntax_errors_name_the_place(source: str, place: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Expression(source)
    assert message in str(caught.value) and f"character {place}:" in str(caught.value)


AVAILABLE = {
    "clip_score": pa.float32(),
    "n_words": pa.int32(),
    "lang": pa.string(),
    "ok": pa.bool_(),
    "texts": pa.list_(pa.string()),
    "sample_id": pa.binary(16),
    "free": None,
}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("clip_scor > 0.3", "did you mean 'clip_score'"),
        ("lang > 3", "text and number cannot be compared"),
        ("lang in ['en', 'de'] and n_words in ['a']", "number and text cannot be compared"),
        ("n_words", "the whole is a number"),
        ("not n_words", "not needs a boolean, found a number"),
        ("lang + 1 > 2", "needs a number, found a text"),
        ("length(n_words) > 1", "length needs a text or list, found a number"),
        ("ok and lang", "and needs a boolean, found a text"),
    ],
)
def test_check_names_unknown_columns_and_kinds_that_do_not_fit(source: str, message: str) -> None:
    with pytest.raises(RecipeError, match="expression, character") as caught:
        Expression(source).check(AVAILABLE)
    assert message in str(caught.value)


def test_check_passes_what_fits() -> None:
    for source in (
        "clip_score > 0.3 and lang in ['en'] and ok",
        "length(texts) > 1 or length(lang) > 2",
        "sample_id == 'ff'",
        "free > 3",
        "coalesce(free, ok)",
    ):
        Expression(source).check(AVAILABLE)


def test_values_of_another_kind_are_an_error_that_shows_them() -> None:
    with pytest.raises(RecipeError, match="the columns hold lang = 'en'"):
        Expression("lang > 3")({"lang": "en"})


def test_a_domain_is_what_somebody_registered_by_a_rule_of_thumb() -> None:
    domain = Expression("domain(url)")
    pairs = {
        "https://img1.cdn.example.com:8080/a.jpg": "example.com",
        "http://www.Example.co.uk/x": "example.co.uk",
        "https://a.b.example.com.br/": "example.com.br",
        "https://example.de/": "example.de",
        "https://co.uk/": "co.uk",
        "http://10.0.0.7/x": "10.0.0.7",
        "http://[::1]/x": "::1",
        "photos/a.jpg": None,
    }
    for url, found in pairs.items():
        assert domain.value({"url": url}) == found, url
    assert domain.value({"url": None}) is None
