"""The MLLM's filter and captions against the truth: counts by hand."""

from __future__ import annotations

import math

import pytest

from stages.demo.mllm_truth import caption_score, filter_score
from stages.demo.scenes import Scene, SceneObject

ONE = Scene(0, "sand", (SceneObject("star", "red", "solid", "small", "top"), SceneObject("ring", "blue", "solid", "large", "left")))
TWO = Scene(1, "wood", (SceneObject("heart", "white", "dotted", "medium", "center"),))


def test_filter_counts_wrong_texts_among_the_rows_that_reached_it() -> None:
    rows = [(False, False, 90.0), (False, True, 40.0), (True, True, 20.0), (True, True, 40.0), (True, False, 70.0)]
    found = filter_score(rows)
    assert (found.scored, found.wrong, found.taken, found.right) == (5, 3, 3, 2)
    assert found.auc == pytest.approx((3 + 1 + 0.5) / 6)  # 90 beats all three; 40 beats 20 and ties with 40
    assert math.isnan(filter_score(rows[:2]).auc)


def test_captions_count_named_objects_by_colour_and_shape() -> None:
    told = [(ONE, "A red star above a blue circle", 6), (TWO, "a small white heart in the center, a white heart", 10)]
    found = caption_score("caption_short", told)
    assert (found.captions, found.tokens) == (2, 8.0)
    assert found.precision == pytest.approx(2 / 3) and found.recall == pytest.approx(2 / 3)
    assert caption_score("caption_dense", []).captions == 0
