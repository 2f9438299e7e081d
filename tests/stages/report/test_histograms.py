"""Histograms in one pass: equal whatever the order and the parts, and the AUC read off them is that of the values."""

from __future__ import annotations

import numpy as np
import pytest

from stages.measure import auc
from stages.report.histograms import MAX_BINS, Histogram


def filled(parts: list[np.ndarray], series: int = 2) -> Histogram:
    histogram = Histogram(series)
    for part in parts:
        histogram.add(part, np.arange(len(part)) % series)
    return histogram


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_counts_depend_neither_on_parts_nor_on_order(scale: float) -> None:
    values = np.random.default_rng(0).normal(size=6000) * scale
    whole = filled([values])
    pieces = [values[i : i + 500] for i in range(0, 6000, 500)]
    for parts in (pieces, pieces[::-1]):
        found = filled(parts)
        assert (found.exponent, found.first) == (whole.exponent, whole.first)
        assert np.array_equal(found.counts, whole.counts)
    assert whole.counts.shape[0] <= MAX_BINS and whole.total.tolist() == [3000, 3000]


def test_bins_hold_what_numpy_counts_in_them() -> None:
    values = np.random.default_rng(1).uniform(-3, 5, 1000)
    histogram = filled([values[:300], values[300:]], series=1)
    bars = histogram.bars(most=40)
    edges = bars.start + bars.width * np.arange(len(bars.heights) + 1)
    assert bars.heights[:, 0].tolist() == np.histogram(values, edges)[0].tolist()
    assert len(bars.heights) <= 40 and bars.below == bars.above == 0
    assert abs(histogram.quantile(0.5) - np.median(values)) < 0.02


def test_one_far_value_does_not_squash_the_picture() -> None:
    values = np.concatenate([np.random.default_rng(2).uniform(0, 50, 2000), [1e6]])
    bars = filled([values], series=1).bars()
    assert bars.stop < 100 and bars.above == 1
    assert bars.heights.sum() + bars.below + bars.above == 2001


def test_whole_numbers_get_whole_bars() -> None:
    bars = filled([np.array([1.0, 1.0, 2.0])], series=1).bars(whole=True)
    assert (bars.start, bars.width, bars.heights[:, 0].tolist()) == (1.0, 1.0, [2, 1])


def test_the_largest_value_belongs_to_the_last_bar_also_where_it_is_its_end() -> None:
    bars = filled([np.linspace(0, 1, 65)], series=1).bars(most=40)
    assert (bars.start, bars.stop, int(bars.heights.sum())) == (0, 1, 65)
    assert bars.heights[:, 0].tolist() == np.histogram(np.linspace(0, 1, 65), len(bars.heights))[0].tolist()


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [7.25] * 5, [-0.0, 0.0], [1e-30, 1e30]])
def test_odd_values(values: list[float]) -> None:
    histogram = filled([np.array(values, float)], series=1)
    finite = int(np.isfinite(values).sum())
    assert histogram.total.sum() == finite
    if finite:
        assert histogram.bars().heights.sum() == finite


def test_auc_is_that_of_the_values_where_scores_are_rounded_as_stages_round_them() -> None:
    rng = np.random.default_rng(3)
    scores, bad = np.round(rng.uniform(0, 1, 4000), 4), rng.random(4000) < 0.3
    scores[bad] = np.round(scores[bad] * 0.8, 4)
    histogram = Histogram(2)
    for part in np.array_split(np.arange(4000), 7):
        histogram.add(scores[part], bad[part].astype(int))
    assert histogram.auc(0, 1) == pytest.approx(auc(scores, bad), abs=1e-9)
    assert Histogram(2).auc(0, 1) is None
