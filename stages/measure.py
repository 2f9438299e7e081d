"""How well a score column tells corrupted pairs from clean ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike


def auc(scores: ArrayLike, corrupted: ArrayLike) -> float:
    """Probability that a clean pair scores above a corrupted one, ties counted half (Mann-Whitney U / n1 n2).

    scores [N] floats, higher is better; corrupted [N] booleans. Raises ValueError where one class is missing or a score
    is NaN.
    """
    values, bad = _checked(scores, corrupted)
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if not n_bad or not n_good:
        raise ValueError(f"auc needs clean and corrupted rows, found {n_good} clean and {n_bad} corrupted")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank of equal scores, from 1
    return float((ranks[~bad].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


def precision_at_keep(scores: ArrayLike, corrupted: ArrayLike, keep_ratio: float) -> float:
    """Share of clean pairs among the floor(keep_ratio * N) best; rows equal to the last kept score count in proportion.

    scores [N] floats, higher is better; corrupted [N] booleans. Raises ValueError when nothing would be kept.
    """
    values, bad = _checked(scores, corrupted)
    keep = math.floor(Fraction(str(keep_ratio)) * len(values))
    if not 0 < keep <= len(values):
        raise ValueError(
            f"keep_ratio {keep_ratio} of {len(values)} rows keeps {keep}; give a ratio that keeps 1 to {len(values)}"
        )
    cut = np.sort(values)[-keep]
    above, tied = values > cut, values == cut
    share_of_ties = (keep - int(above.sum())) / int(tied.sum())
    clean = int((above & ~bad).sum()) + share_of_ties * int((tied & ~bad).sum())
    return float(clean / keep)


def _checked(scores: ArrayLike, corrupted: ArrayLike | Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    values, bad = np.asarray(scores, dtype=np.float64), np.asarray(corrupted, dtype=bool)
    if values.shape != bad.shape or values.ndim != 1:
        raise ValueError(f"scores {values.shape} and corrupted {bad.shape} must be two lists of equal length")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} scores are NaN; leave out rows without a score")
    return values, bad
