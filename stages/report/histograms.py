"""Histograms of a column whose range nobody knows beforehand, in one pass and in bounded memory.

Bins are dyadic: [i * 2^k, (i + 1) * 2^k). When the values spread over more than MAX_BINS, k grows and neighbours are
joined, which loses nothing but resolution. So the final k follows from the smallest and the largest value alone, and the
counts depend neither on the order of the values nor on how they came in parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_BINS = 1 << 14  # over a range of 1 finer than the 1e-4 to which scores are rounded
FINEST = -20


class Histogram:
    """Counts per bin and series, int64 [bins, series]; the first bin has index `first`. Infinite and NaN values are left out."""

    def __init__(self, series: int):
        self.series = series
        self.exponent = FINEST
        self.first = 0
        self.counts = np.zeros((0, series), np.int64)
        self.low = math.inf
        self.high = -math.inf

    def add(self, values: np.ndarray, series: np.ndarray) -> None:
        """Add values (float64 [N]), each to its series (int [N])."""
        fine = np.isfinite(values)
        values, series = values[fine], series[fine]
        if not len(values):
            return
        low, high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self._fit(low, high)
        index = np.floor(np.ldexp(values, -self.exponent)).astype(np.int64) - self.first
        self.counts += np.bincount(index * self.series + series, minlength=self.counts.size).reshape(-1, self.series)

    def _fit(self, low: float, high: float) -> None:
        """Make room for values from `low` to `high`."""
        if (low, high) == (self.low, self.high):
            return
        exponent = span_exponent(low, high, MAX_BINS, self.exponent)
        first, old = math.floor(math.ldexp(low, -exponent)), joined(self.counts, self.first, exponent - self.exponent)
        counts = np.zeros((math.floor(math.ldexp(high, -exponent)) - first + 1, self.series), np.int64)
        start = (self.first >> (exponent - self.exponent)) - first
        counts[start : start + len(old)] = old
        self.low, self.high, self.exponent, self.first, self.counts = low, high, exponent, first, counts

    @property
    def total(self) -> np.ndarray:
        """Values per series, int64 [series]."""
        return self.counts.sum(axis=0)

    def quantile(self, share: float) -> float:
        """Lower edge of the bin at that share of all values; NaN without values."""
        before = np.cumsum(self.counts.sum(axis=1))
        if not len(before):
            return math.nan
        place = int(np.searchsorted(before, before[-1] * share, side="left"))
        return max(self.low, math.ldexp(float(self.first + place), self.exponent))

    def bars(self, most: int = 56, tail: float = 0.002, whole: bool = False) -> Bars:
        """At most `most` bars, of width 1 at least where `whole`. Where few values lie far off, the bars cover all but the
        share `tail` at each end, and the rest is told as numbers."""
        each = self.counts.sum(axis=1)
        total, before = int(each.sum()), np.cumsum(each)
        first = int(np.searchsorted(before, total * tail, side="right"))
        stop = int(np.searchsorted(before, total * (1 - tail), side="left")) + 1
        if len(each) <= 3 * (stop - first):
            first, stop = 0, len(each)
        step = max(0, -self.exponent) if whole else 0
        while ((self.first + stop - 1) >> step) - ((self.first + first) >> step) + 1 > most:
            step += 1
        heights = joined(self.counts[first:stop], self.first + first, step)
        size = math.ldexp(1.0, self.exponent + step)
        if not whole and len(heights) > 1 and self.high == ((self.first + stop - 1) >> step) * size:
            heights[-2] += heights[-1]  # the largest value, say 1, gets no bar of its own beyond the last one
            heights = heights[:-1]
        return Bars(((self.first + first) >> step) * size, size, heights, int(each[:first].sum()), int(each[stop:].sum()))

    def auc(self, good: int, bad: int) -> float | None:
        """Probability that a value of series `good` lies above one of series `bad`; values of one bin count half.

        None where a series is empty. It is the Mann-Whitney AUC where bins are finer than the values' steps."""
        goods, bads = self.counts[:, good].astype(float), self.counts[:, bad].astype(float)
        pairs = goods.sum() * bads.sum()
        return float((goods * (np.cumsum(bads) - bads / 2)).sum() / pairs) if pairs else None


@dataclass(frozen=True)
class Bars:
    """Bar i covers [start + i * width, start + (i + 1) * width), the last one its end too. heights: int64 [bars, series];
    below, above: values beyond the bars."""

    start: float
    width: float
    heights: np.ndarray
    below: int
    above: int

    @property
    def stop(self) -> float:
        return self.start + self.width * len(self.heights)


def span_exponent(low: float, high: float, most: int, least: int) -> int:
    """The smallest k, at least `least`, with at most `most` bins of width 2^k from `low` to `high`."""
    exponent = max(least, math.floor(math.log2((high - low) / most)) if high > low else least)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= most:
        exponent += 1
    return exponent


def joined(counts: np.ndarray, first: int, steps: int) -> np.ndarray:
    """Counts [bins, series], the first of index `first`, in bins 2^steps times as wide."""
    if not steps or not len(counts):
        return counts
    parents = (np.arange(first, first + len(counts)) >> steps) - (first >> steps)
    wide = np.zeros((int(parents[-1]) + 1, counts.shape[1]), np.int64)
    np.add.at(wide, parents, counts)
    return wide
