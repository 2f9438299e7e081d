"""Which columns are drawn and where the recipe's limits lie in them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.chain import Chain, InputFacts
from pipeline.recipe import load_recipe
from schemas.outcome import FailureCode, Reason
from stages.report.measures import find_measures, find_thresholds
from stages.report.words import in_words


def limits(*settings: str) -> dict[str, tuple[str, float]]:
    recipe = load_recipe("web_pairs", ["input.table=none.parquet", *settings])
    chain = Chain(recipe, InputFacts("", {"similarity": pa.float32(), "licence": pa.string()}))
    measures = find_measures(chain, 100)
    return {f"{t.stage}.{measures[t.measure].label}.{t.side}": (t.parameter, t.value) for t in find_thresholds(chain, measures)}


def test_limits_of_the_built_in_recipe() -> None:
    found = limits("download.min_width=64", "text_rules.min_lang_score=0.7")
    assert found["clip_score.clip_score.min"] == ("min", 0.28)
    assert found["repeated_text.least_n_text.max"] == ("max_count", 10)
    assert found["text_rules.n_words.min"][0] == "min_words"
    assert found["text_rules.lang_score.min"] == ("min_lang_score", 0.7)
    assert "download.width.min" in found


def test_limits_in_an_expression_are_those_that_must_all_hold() -> None:
    found = limits("select.where=clip_score >= 0.3 and (-1 < similarity and n_words < 40) and (width > 5 or height > 5) and not n_bytes > 9")
    mine = {name.removeprefix("select."): value for name, (parameter, value) in found.items() if name.startswith("select.")}
    assert mine == {"clip_score.min": 0.3, "similarity.min": -1, "n_words.max": 40}


def test_limits_of_scores_by_aspect() -> None:
    recipe = load_recipe("demo", ["input.table=none.parquet", "evaluate.pairs=none.parquet", "report.truth=none.parquet", "models.mllm.kind=transformers"])
    chain = Chain(recipe, InputFacts("", {}))
    measures = find_measures(chain, 100)
    (found,) = [one for one in find_thresholds(chain, measures) if one.stage == "mllm_score"]
    assert measures[found.measure].label == "image_text_matching"
    assert (found.parameter, found.side, found.value) == ("thresholds.image_text_matching", "min", 66)
    assert {one.label for one in measures if one.is_score and not one.meaning} == set(), "every score of the demo is explained"


def test_measures_are_numbers_that_measure_something() -> None:
    recipe = load_recipe("web_pairs", ["input.table=none.parquet"])
    chain = Chain(recipe, InputFacts("", {"similarity": pa.float32(), "licence": pa.string(), "n_words": pa.int32()}))
    measures = find_measures(chain, 100)
    labels = [measure.label for measure in measures]
    assert {"clip_score", "lang_score", "similarity", "source.n_words", "text_rules.n_words"} <= set(labels)
    assert not {"offset", "size", "http_status", "licence", "image_emb"} & set(labels)
    assert [m.is_score for m in measures] == sorted((m.is_score for m in measures), reverse=True)
    assert len(find_measures(chain, 3)) == 3


@pytest.mark.parametrize("reason", [*Reason, *FailureCode])
def test_every_reason_has_a_sentence(reason: str) -> None:
    status = "dropped" if isinstance(reason, Reason) else "failed"
    assert in_words(status, reason).endswith(".")
