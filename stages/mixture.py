"""A mixture of two normal distributions over one number per row: which rows belong to the one with the higher mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SAMPLE = 1_000_000  # values that a mixture is fitted on at most
LEAST_SPREAD = 1e-3  # of the values' own spread: a component may not shrink onto a single value


@dataclass(frozen=True)
class Mixture:
    """Weights, means and standard deviations of the lower and the higher component (the one with the lower mean first)."""

    weights: tuple[float, float]
    means: tuple[float, float]
    spreads: tuple[float, float]

    def posterior(self, values: np.ndarray) -> np.ndarray:
        """Probability float64 [N] that each value is of the component with the higher mean."""
        odds = self._log_odds(np.asarray(values, np.float64))
        return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))

    def rising_posterior(self, values: np.ndarray) -> np.ndarray:
        """The posterior, but that a higher value never has a lower one.

        Where the spreads differ the log odds are a parabola: far below (or above) both means the wider component wins again, though nothing was as easy (or
        as hard) to learn. Beyond the parabola's turn the posterior stays what it is there.
        """
        (low, high), (mean_low, mean_high) = (1 / s**2 for s in self.spreads), self.means
        values = np.asarray(values, np.float64)
        if low != high:
            turn = (low * mean_low - high * mean_high) / (low - high)
            values = np.maximum(values, turn) if low > high else np.minimum(values, turn)
        return self.posterior(values)

    def _log_odds(self, values: np.ndarray) -> np.ndarray:
        low, high = (
            math.log(max(weight, 1e-300)) - math.log(spread) - 0.5 * ((values - mean) / spread) ** 2
            for weight, mean, spread in zip(self.weights, self.means, self.spreads, strict=True)
        )
        return high - low


def fit_mixture(values: np.ndarray, rounds: int = 200, tolerance: float = 1e-8) -> Mixture:
    """Expectation-maximisation on float64 [N], from the lower and the upper half of the values on; ends when the mean log likelihood rises by less than
    `tolerance`. Raises ValueError for fewer than two different values.
    """
    values = np.asarray(values, np.float64)
    whole = float(values.std()) if len(values) else 0.0
    if not np.isfinite(values).all() or whole == 0:
        raise ValueError("a mixture needs at least two different numbers")
    middle, floor = float(np.median(values)), whole * LEAST_SPREAD
    upper = (values > middle) if (values > middle).any() else (values >= middle)
    high = upper.astype(np.float64)
    found, before = _maximise(values, high, floor), -math.inf
    for _ in range(rounds):
        high = found.posterior(values)
        found = _maximise(values, high, floor)
        likelihood = float(np.mean(_log_likelihood(found, values)))
        if likelihood - before < tolerance:
            break
        before = likelihood
    if found.means[0] > found.means[1]:
        found = Mixture(found.weights[::-1], found.means[::-1], found.spreads[::-1])
    return found


def _maximise(values: np.ndarray, high: np.ndarray, floor: float) -> Mixture:
    weights, means, spreads = [], [], []
    for share in (1 - high, high):
        total = max(float(share.sum()), 1e-12)
        mean = float((share * values).sum() / total)
        weights.append(total / len(values))
        means.append(mean)
        spreads.append(max(math.sqrt(float((share * (values - mean) ** 2).sum() / total)), floor))
    return Mixture((weights[0], weights[1]), (means[0], means[1]), (spreads[0], spreads[1]))


def _log_likelihood(found: Mixture, values: np.ndarray) -> np.ndarray:
    logs = [
        math.log(max(weight, 1e-300)) - math.log(spread) - 0.5 * math.log(2 * math.pi) - 0.5 * ((values - mean) / spread) ** 2
        for weight, mean, spread in zip(found.weights, found.means, found.spreads, strict=True)
    ]
    return np.logaddexp(*logs)
