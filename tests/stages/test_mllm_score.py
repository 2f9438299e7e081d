"""mllm_score: reading of answers as MLM-Filter has it, thresholds at their edge, expectation, rows without text or image."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import RecipeError
from schemas.outcome import Drop, Failure
from stages.mllm_score import ASPECTS, MllmScore, expectation, parse_score
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling
from tests.stages.asked_rows import Scripted, ask, row


def make(**params: Any) -> MllmScore:
    stage = MllmScore(MllmScore.Params(**params))
    stage.check({})
    return stage


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("87", 87), ("87\n...", 87), ("87,", 87), ("87;,", 87), (" 0 \nbecause", 0), ("100", 100), ("007", 7),
        ("n/a", None), ("", None), ("101", None), ("-3", None), ("87.5", None), ("eighty", None), ("87 points", None), ("²", None),
        ("８７", None), ("\n87", 87),
    ],
)  # fmt: skip
def test_answers_are_read_as_the_recipe_says(text: str, score: int | None) -> None:
    assert parse_score(text) == score


def test_each_aspect_has_its_column_and_its_prompt() -> None:
    model = Scripted("91", "12", "55\nthe text is fine", "86,")
    assert ask(make(), model, [row("a red dog")]) == [dict(zip(ASPECTS, (91.0, 12.0, 55.0, 86.0), strict=True))]
    assert [f"Score {aspect}" in asked.text for aspect, asked in zip(ASPECTS, model.asked, strict=True)] == [True] * 4
    assert len({asked.system for asked in model.asked}) == 1 and len({asked.image_digest for asked in model.asked}) == 1
    assert all("<text> a red dog </text>" in asked.text and asked.sampling.temperature == 0 for asked in model.asked)


def test_aspects_left_out_are_null_and_not_asked() -> None:
    model = Scripted("90")
    assert ask(make(aspects=["semantic_understanding"]), model, [row("x")])[0] == {**dict.fromkeys(ASPECTS), "semantic_understanding": 90.0}
    assert len(model.asked) == 1


def test_an_answer_that_is_no_number_fails_with_its_text() -> None:
    found = ask(make(), Scripted("91", "I think it is good", "1", "2"), [row("x")])[0]
    assert found == Failure("bad_answer", "object_detail_fulfillment: 'I think it is good' is no number from 0 to 100")
    refused = ask(make(), Scripted(ChatAnswer("no", 1, "refused")), [row("x")])[0]
    assert refused.code == "refusal"


def test_expectation_weighs_numbers_by_their_probability() -> None:
    answer = ChatAnswer("80", 1, "length", 0, {80: 0.4, 90: 0.3, 10: 0.1})
    stage = make(expectation=True, aspects=["image_text_matching"], thresholds={})
    assert ask(stage, Scripted(answer), [row("x")])[0]["image_text_matching"] == pytest.approx((32 + 27 + 1) / 0.8)
    assert expectation({}) is None and expectation(None) is None and expectation({7: 1e-9}) == 7
    model = Scripted(answer)
    ask(stage, model, [row("x")])
    assert model.asked[0].sampling.numbers


def test_only_answers_that_may_be_wrong_are_asked_again() -> None:
    """An http server's first digit was once taken for the number; other engines gave no such answer."""
    sampling = Sampling(4, numbers=True)
    asked = [ChatRequest("system", "text", None, b"", one) for one in (sampling, replace(sampling, numbers=False))]

    def old_key(request: ChatRequest, digest: str) -> bytes:
        parts = (digest, request.system, request.text, request.image_digest.hex(), request.sampling.to_json())
        return hashlib.sha256(b"".join(len(part.encode()).to_bytes(8, "little") + part.encode() for part in parts)).digest()

    same = {(one.sampling.numbers, digest): one.key(digest) == old_key(one, digest) for one in asked for digest in ("vllm-1", "transformers-1", "http-1")}
    assert same == {(numbers, digest): not (numbers and digest == "http-1") for numbers, digest in same}
    assert make(expectation=True).compute_facts() != make().compute_facts() and len(make().compute_facts()) == len(ASPECTS)


def test_rows_without_text_or_image_ask_nothing() -> None:
    model = Scripted("90")
    empty, broken, missing, good = row(""), row("x", data=b"no image"), {**row("x"), "image": None}, row("x", at=3)
    found = ask(make(), model, [empty, broken, missing, good])
    assert found[0] == dict.fromkeys(ASPECTS) and found[1].code == "unsupported_format" and found[2].code == "bad_row"
    assert found[3]["image_text_matching"] == 90 and len(model.asked) == 4


def scores(**given: float | None) -> dict[str, float | None]:
    return {**dict.fromkeys(ASPECTS, 100.0), **given}


@pytest.mark.parametrize(
    ("thresholds", "row", "drop"),
    [
        ("open_qwen2vl", scores(semantic_understanding=85), None),
        ("open_qwen2vl", scores(semantic_understanding=84), "semantic_understanding 84 < 85"),
        ("open_qwen2vl", scores(image_text_matching=0), None),
        ("mlm_filter", scores(image_text_matching=66, object_detail_fulfillment=20), None),
        ("mlm_filter", scores(image_text_matching=65.99), "image_text_matching 65.99 < 66"),
        ("mlm_filter", scores(object_detail_fulfillment=19), "object_detail_fulfillment 19 < 20"),
        ({"caption_text_quality": 33.3}, scores(caption_text_quality=33.3), None),
        ({"caption_text_quality": 33.3}, scores(caption_text_quality=None), "caption_text_quality: no text"),
        ({}, dict.fromkeys(ASPECTS), None),
    ],
)
def test_thresholds_keep_what_lies_on_them(thresholds: Any, row: dict[str, Any], drop: str | None) -> None:
    assert make(thresholds=thresholds).decide(row, {}) == (None if drop is None else Drop("low_mllm", drop))


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValidationError):
        make(aspects=["image_text_matchin"])
    with pytest.raises(ValidationError, match="stands twice"):
        make(aspects=["caption_text_quality"] * 2)
    with pytest.raises(RecipeError, match="'semantic_understanding' is not scored"):
        make(aspects=["caption_text_quality"])


def test_expectation_of_a_distribution_lies_between_its_ends() -> None:
    numbers = {n: math.exp(-abs(n - 70) / 5) for n in range(101)}
    assert 69 < expectation(numbers) < 70
