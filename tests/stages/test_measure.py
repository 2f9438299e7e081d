from __future__ import annotations

import random

import pytest

from stages.measure import auc, precision_at_keep


def auc_by_loops(scores: list[float], corrupted: list[bool]) -> float:
    wins = pairs = 0.0
    for good, bad_a in zip(scores, corrupted, strict=True):
        for bad, bad_b in zip(scores, corrupted, strict=True):
            if not bad_a and bad_b:
                pairs += 1
                wins += 1.0 if good > bad else 0.5 if good == bad else 0.0
    return wins / pairs


def precision_by_permutations(scores: list[float], corrupted: list[bool], keep: int, tries: int = 4000) -> float:
    """Mean over random orders of tied rows."""
    draw, total = random.Random(0), 0
    for _ in range(tries):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], draw.random()))
        total += sum(not corrupted[i] for i in order[:keep])
    return total / tries / keep


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_the_share_of_pairs_in_order(seed: int) -> None:
    draw = random.Random(seed)
    scores = [draw.randrange(6) / 5 for _ in range(60)]
    corrupted = [draw.random() < 0.3 for _ in range(60)]
    assert auc(scores, corrupted) == pytest.approx(auc_by_loops(scores, corrupted), abs=1e-12)


def test_auc_of_perfect_and_of_reversed_scores() -> None:
    assert auc([3, 2, 1, 0], [False, False, True, True]) == 1.0
    assert auc([0, 1, 2, 3], [False, False, True, True]) == 0.0
    assert auc([1, 1], [False, True]) == 0.5


def test_precision_at_keep_counts_ties_in_proportion() -> None:
    scores, corrupted = [3.0, 2.0, 2.0, 2.0, 1.0], [False, True, False, False, False]
    assert precision_at_keep(scores, corrupted, 0.2) == 1.0
    assert precision_at_keep(scores, corrupted, 0.8) == pytest.approx(3 / 4)
    assert precision_at_keep(scores, corrupted, 0.4) == pytest.approx((1 + 2 / 3) / 2)
    assert precision_at_keep(scores, corrupted, 0.4) == pytest.approx(
        precision_by_permutations(scores, corrupted, 2), abs=0.02
    )


@pytest.mark.parametrize(
    ("scores", "corrupted", "message"),
    [
        ([1, 2], [False, False], "0 corrupted"),
        ([float("nan"), 1], [True, False], "NaN"),
        ([1], [True, False], "equal length"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores: list[float], corrupted: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc(scores, corrupted)


def test_a_ratio_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps 0"):
        precision_at_keep([1.0, 2.0], [False, True], 0.4)
