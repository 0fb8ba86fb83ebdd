"""Uncertainty of metrics: standard errors of rates, and paired differences over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Quantile of the normal distribution for two-sided 95 %.
Z_95 = 1.959964


def rate_error(rate: float, count: int) -> float:
    """Return the standard error of a rate that was measured on `count` independent cases.

    A rate of 0 or 1 is moved by half a case, as it would have no error otherwise.
    """
    clipped = min(max(rate, 0.5 / count), 1 - 0.5 / count)
    return math.sqrt(clipped * (1 - clipped) / count)


def bootstrap_interval(values: NDArray[np.float64], samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean (percentiles).

    Args:
        values: of independent cases, such as 1 for a pair decided rightly, [n].
        samples: number of resamplings.
        seed: of these.
    """
    generator, count = np.random.default_rng(seed), len(values)
    means = [values[generator.integers(0, count, count)].mean() for _ in range(samples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """A paired t-test of differences.

    Args:
        mean: of the differences.
        low: lower end of the 95 % confidence interval.
        high: its upper end.
        p_value: two-sided probability of such a mean if there is no difference.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.p_value < 0.05


def paired_t_test(differences: Sequence[float]) -> PairedTest | None:
    """Test whether the mean of paired differences is 0 (Student's t); None for fewer than two.

    Args:
        differences: of two settings, one for each seed.
    """
    if len(differences) < 2:
        return None
    mean, freedom = statistics.mean(differences), len(differences) - 1
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return PairedTest(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    reach = _t_quantile(freedom) * error
    return PairedTest(mean, mean - reach, mean + reach, 1 - _t_within(abs(mean) / error, freedom))


def _t_within(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies within ±t (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = 1.0, 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    if freedom == 1:
        return 2 / math.pi * angle
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)


def _t_quantile(freedom: int) -> float:
    """Return the t within which 95 % lie, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 0.95 else (low, middle)
    return high
