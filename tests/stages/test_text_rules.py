"""text_rules and its presets: every rule is tripped exactly at its edge, and by that rule alone."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.stage import Context, Evidence, params_affecting
from schemas.outcome import Drop
from schemas.sample import TEXTS, make_text
from stages.presets import PRESETS, image_rules
from stages.text.rules import passing, passing_texts
from stages.text_rules import TextRules

CTX = Context("text_rules", 0)
WORDS = [
    "red",
    "car",
    "near",
    "the",
    "old",
    "stone",
    "bridge",
    "with",
    "two",
    "white",
    "birds",
    "over",
    "calm",
    "water",
]


def judge(text: Any, **params: Any) -> tuple[dict[str, Any], Drop | None]:
    """Values and verdict of a row with this text (or list of texts), stored and read back as the machine does."""
    stage = TextRules(TextRules.Params(**params))
    given = text if isinstance(text, str) or text is None else [make_text(one) for one in text]
    (values,) = stage.compute([{"texts": given, "sample_id": b"\1" * 16}], CTX)
    table = pa.table({name: pa.array([values[name]], kind) for name, kind in stage.writes.items()})  # type: ignore[index, arg-type]
    (stored,) = table.to_pylist()
    return stored, stage.decide(stored, {})


def reason(text: Any, **params: Any) -> str | None:
    drop = judge(text, **params)[1]
    return drop.reason.value if drop else None  # type: ignore[attr-defined]


def words(n: int) -> str:
    return " ".join((WORDS * 10)[:n])


OFF: dict[str, Any] = {
    name: value for name, value in PRESETS["filip"].text.items() if name not in ("languages", "file_name")
} | {"file_name": False}


@pytest.mark.parametrize(
    ("params", "passes", "fails", "expected"),
    [
        ({"empty": True}, "x", " \u200b&nbsp; ", "empty"),
        ({"min_chars": 5}, "abcde", "abcd", "too_short"),
        ({"max_chars": 5}, "abcde", "abcdef", "too_long"),
        ({"max_han": 3}, "一二三", "一二三四", "too_long"),
        ({"min_words": 3}, words(3), words(2), "too_few_words"),
        ({"max_words": 81}, words(81), words(82), "too_many_words"),
        ({"min_han": 1}, "iPhone 手", "iPhone", "language"),
        ({"boilerplate": True, "max_boilerplate_share": 0.6}, "buy now sofa", "buy now sof", "boilerplate"),
        ({"file_name": True}, "a dog named jpg", "dog.jpg", "file_name"),
        ({"url_text": True, "max_url_share": 0.5}, "www.ab.com abcdefghij", "www.ab.com abcdefghi", "url_text"),
        ({"emoji": True}, "a dog :)", "a dog \U0001f436", "emoji"),
        ({"languages": ["en"]}, "a dog runs on the beach", "ein Hund läuft am Strand", "language"),
        ({"min_letters": 0.5}, "ab 12", "ab 123", "low_letters"),
        ({"max_repeated_tokens": 0.5}, "a b a b", "a b a b a", "repetition"),
        ({"max_repeated_ngrams": 0.5}, "abcdeabcdeabcd", "abcdeabcdeabcde", "repetition"),
        ({"min_entropy": round(math.log(2), 4)}, "dog cat dog cat", "dog cat dog cat dog", "low_entropy"),
    ],
)
def test_each_rule_alone_at_its_edge(params: dict[str, Any], passes: str, fails: str, expected: str) -> None:
    assert reason(passes, **{**OFF, **params}) is None
    assert reason(fails, **{**OFF, **params}) == expected
    if expected != "empty":
        assert reason(fails, **OFF) is None, "off means off"


# Of each preset: a text at the threshold, which passes, and one a step over, which is dropped for exactly that reason.
PRESET_EDGES: list[tuple[str, str, str, str]] = [
    ("filip", "a dog runs on the beach", "un chien court sur la plage", "language"),
    ("filip", "a dog on the beach jpg", "a dog on the beach.jpg", "file_name"),
    ("wukong", "红" * 31, "红" * 32, "too_long"),
    ("wukong", "Nikon 相", "Nikon camera", "language"),
    ("wukong", "三千张图", "000.jpg", "file_name"),
    ("wit", "the red car", "red car", "too_few_words"),
    ("wit", "the icon of saint Nicholas", "icon", "boilerplate"),
    ("wit", "the old church tower", "church_tower_03.jpg", "file_name"),
    ("realsyn", words(3) + " the the the", "red car", "too_few_words"),
    ("realsyn", words(81), words(82), "too_many_words"),
    ("realsyn", words(5) + " :)", words(5) + " \U0001f600", "emoji"),
    ("realsyn", "the bridge at example dot com", "the bridge at example.com", "url_text"),
    ("datacomp_basic", "a b dog", "a doggy", "too_few_words"),
    ("datacomp_basic", "a b dg", "a b d", "too_short"),
    ("datacomp_basic", "a dog runs on the beach", "un chien court sur la plage", "language"),
]


@pytest.mark.parametrize(("preset", "passes", "fails", "expected"), PRESET_EDGES)
def test_each_text_rule_of_each_preset_at_its_edge(preset: str, passes: str, fails: str, expected: str) -> None:
    own: dict[str, Any] = {"preset": preset}
    if preset == "realsyn":
        own["min_entropy"] = None  # needs the corpus: tested below
    if preset == "datacomp_basic" and expected != "language":
        own["languages"] = None  # texts of six letters have no language worth the name
    assert reason(passes, **own) is None
    assert reason(fails, **own) == expected


def test_wit_drops_texts_whose_language_cannot_be_told() -> None:
    assert reason("12 34 56", preset="wit") == "language"
    stored, drop = judge("a dog runs on the beach", preset="wit")
    assert drop is None
    (measures,) = stored["text_measures"]
    params = TextRules.Params(preset="wit")
    assert passing([{**measures, "lang_score": 0.5}, {**measures, "lang_score": 0.4999}], params) == [True, False]


def test_every_rule_of_every_preset_has_an_edge_case() -> None:
    tried = {(preset, expected) for preset, _, _, expected in PRESET_EDGES} | {
        ("realsyn", "low_entropy"),
        ("wit", "language"),
    }
    reasons_of = {
        "languages": "language",
        "min_lang_score": "language",
        "min_han": "language",
        "max_han": "too_long",
        "min_chars": "too_short",
        "min_words": "too_few_words",
        "max_words": "too_many_words",
        "min_entropy": "low_entropy",
        "url_text": "url_text",
    }
    for preset, table in PRESETS.items():
        on = {
            name
            for name, value in table.text.items()
            if value not in (None, False) and name not in ("empty", "name_token", "max_url_share", "entropy_of")
        }
        assert {(preset, reasons_of.get(name, name)) for name in on} <= tried, preset


def corpus_verdicts(texts: list[str], **params: Any) -> tuple[list[str | None], list[float]]:
    """Compute, resolve over the corpus, decide."""
    stage = TextRules(TextRules.Params(**params))
    values = stage.compute([{"texts": text, "sample_id": bytes([i]) * 16} for i, text in enumerate(texts)], CTX)
    key = stage.reads_resolve[0]
    table = pa.table(
        {"part": [0] * len(texts), "row": list(range(len(texts))), key: pa.array([v["texts"] for v in values], TEXTS)}
    )  # type: ignore[index]
    con = duckdb.connect()
    con.register("t", table)
    con.execute("CREATE TABLE rows AS SELECT * FROM t")
    resolved = stage.resolve(Evidence(con, len(texts), len(texts))).to_arrow_table().to_pylist()
    drops = [stage.decide(value, one) for value, one in zip(values, resolved, strict=True)]  # type: ignore[arg-type]
    return [drop.reason if drop else None for drop in drops], [one["corpus_entropy"][0] for one in resolved]


def test_corpus_entropy_equals_a_loop_and_drops_below_its_edge() -> None:
    texts = [
        "the dog runs in the park",
        "dog runs park",
        "the cat and the bird",
        "in the sun and in the rain",
        "Park the car",
    ]
    counts: dict[str, int] = {}
    for word in " ".join(texts).lower().split():
        counts[word] = counts.get(word, 0) + 1
    total = sum(counts.values())
    expected = [-sum(counts[w] / total * math.log(counts[w] / total) for w in text.lower().split()) for text in texts]
    _, found = corpus_verdicts(texts, preset="realsyn")
    assert found == pytest.approx(expected, abs=1e-4)
    edge = round(expected[2], 4)
    at, _ = corpus_verdicts(texts, preset="realsyn", min_entropy=edge)
    over, _ = corpus_verdicts(texts, preset="realsyn", min_entropy=edge + 1e-4)
    assert at[2] is None and over[2] == "low_entropy"


def test_realsyn_keeps_frequent_words_and_drops_rare_ones() -> None:
    common = ["the dog is in the park with the cat"] * 3
    verdicts, found = corpus_verdicts(
        [*common, "xylophone quixotic zeppelin yacht", *[f"word{i} more{i} other{i}" for i in range(200)]],
        preset="realsyn",
    )
    assert found[0] > 0.1 > found[3] and verdicts[3] == "low_entropy"


def test_image_rules_of_the_presets() -> None:
    third = pytest.approx(1 / 3)
    assert image_rules("filip") == {
        "min_short_side": 200,
        "min_width": None,
        "min_height": None,
        "max_aspect": 3.0,
        "min_aspect": third,
    }
    assert image_rules("wukong") == {
        "min_short_side": None,
        "min_width": 200,
        "min_height": 200,
        "max_aspect": 3.0,
        "min_aspect": third,
    }
    assert image_rules("wit") == {
        "min_short_side": None,
        "min_width": 100,
        "min_height": 100,
        "max_aspect": None,
        "min_aspect": None,
    }
    assert image_rules("realsyn")["min_short_side"] == 100 and image_rules("datacomp_basic")["min_short_side"] == 200
    with pytest.raises(RecipeError, match="did you mean 'filip'"):
        image_rules("filipp")


def test_what_the_recipe_gives_wins_over_the_preset() -> None:
    params = TextRules.Params(preset="wit", min_words=1, file_name=False)
    assert (params.min_words, params.file_name, params.boilerplate) == (1, False, True)
    again = TextRules.Params(**params.model_dump(mode="json"))
    assert again == params
    with pytest.raises(RecipeError, match="did you mean 'wukong'"):
        TextRules.Params(preset="wukon")
    with pytest.raises(ValidationError):
        TextRules.Params(languages=["English"])


def test_thresholds_are_no_part_of_what_is_computed() -> None:
    one, other = TextRules.Params(preset="filip"), TextRules.Params(preset="datacomp_basic")
    assert params_affecting(one, "compute") == params_affecting(other, "compute")
    assert params_affecting(one, "decide") != params_affecting(other, "decide")


def test_a_row_is_kept_while_one_text_passes_and_its_first_text_is_a_caption() -> None:
    stored, drop = judge(["IMG_1234.jpg", "a red chair by the window"], languages=["en"])
    assert drop is None
    assert [entry["text"] for entry in stored["texts"]] == ["a red chair by the window", "IMG_1234.jpg"]
    assert (stored["text"], stored["lang"], stored["n_words"]) == ("a red chair by the window", "en", 6)
    params = TextRules.Params(languages=["en"])
    assert passing(stored["text_measures"], params) == [True, False]
    later = [
        make_text("IMG_1234.jpg"),
        make_text("a caption by a model", kind="caption"),
        make_text("a red chair by the window"),
    ]
    measured = [entry["text"] for entry in stored["texts"]]
    assert [one["text"] for one in passing_texts(later, measured, stored["text_measures"], params)] == [
        "a caption by a model",
        "a red chair by the window",
    ]


def test_the_reason_is_that_of_the_rows_own_text() -> None:
    _, drop = judge(["IMG_1234.jpg", "dog"], min_chars=5)
    assert drop is not None and drop.reason == "file_name"
    _, drop = judge(["dog", "IMG_1234.jpg"], min_chars=5)
    assert drop is not None and (drop.reason, drop.detail) == ("too_short", "3 characters, at least 5")


def test_texts_that_become_equal_are_listed_once() -> None:
    stored, _ = judge(["a  red&nbsp;chair", "a red chair"])
    assert [entry["text"] for entry in stored["texts"]] == ["a red chair"]


def test_a_plain_alt_text_or_none_becomes_a_list() -> None:
    stored, _ = judge("a red chair")
    assert stored["texts"] == [make_text("a red chair", source="01" * 16)]
    for nothing in (None, "", []):
        stored, drop = judge(nothing)
        assert drop is not None and drop.reason == "empty" and stored["text"] == ""


def test_person_names_are_replaced(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("# people\nJane Doe\n", encoding="utf-8")
    params = {"preset": "wukong", "names_file": str(listed), "names": ["王小明"]}
    assert judge("王小明和 Jane Doe 合影", **params)[0]["text"] == "<人名>和 <人名> 合影"
    before = TextRules.Params(**params)
    listed.write_text("John Roe\n", encoding="utf-8")
    assert TextRules.Params(**params).files_sha256 != before.files_sha256
    assert judge("Jane Doe, John Roe", **params)[0]["text"] == "Jane Doe, <人名>"
    with pytest.raises(RecipeError, match="cannot read"):
        TextRules.Params(names_file=str(tmp_path / "none.txt"))


def test_a_recogniser_is_a_function_named_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "finder_of_names.py").write_text(
        "def find(texts):\n    return [[(t.index('Kim'), t.index('Kim') + 3)] if 'Kim' in t else [] for t in texts]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        judge(["Kim in Rome", "nobody"], name_recogniser="finder_of_names:find")[0]["texts"][0]["text"]
        == "<person> in Rome"
    )
    with pytest.raises(RecipeError, match="package.module:function"):
        judge("x", name_recogniser="finder_of_names:nothing")


def test_own_boilerplate_list(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("our little shop\n")
    assert reason("Our little shop 12", boilerplate_file=str(path)) == "boilerplate"
    assert reason("click here to enlarge", boilerplate_file=str(path)) is None


def test_ten_thousand_short_texts_take_under_three_seconds() -> None:
    rows = [
        {"texts": f"a {a} {b} near the old stone bridge number {i}"} for i in range(52) for a in WORDS for b in WORDS
    ][:10_000]
    stage = TextRules(TextRules.Params())
    stage.compute(rows[:1], CTX)
    start = time.process_time()
    values = stage.compute(rows, CTX)
    assert len(values) == 10_000 and time.process_time() - start < 3.0
