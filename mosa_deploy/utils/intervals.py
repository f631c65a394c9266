"""Estimates with their 95 % intervals.

scipy is imported where it is needed, so that `median_interval` works where only numpy is installed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TAIL = 0.025
"""The probability on either side of a 95 % interval."""

RESAMPLES = 2000
"""Draws of the bootstrap."""

Values = Sequence[float] | NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and the bounds of its interval, which are NaN if a single value does not tell them."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """`1.02 (0.99 to 1.05)`, each number by the given format; the estimate alone if it has no bounds."""
        value, low, high = (format(each, spec) for each in self)
        return value if math.isnan(self.low) else f"{value} ({low} to {high})"


def mean_interval(values: Values) -> Interval:
    """The mean with Student's interval, `mean -+ t(n - 1) * s / sqrt(n)`; one value has bounds of NaN.

    s is the standard deviation with n - 1 degrees of freedom; the values are taken as independent and normal.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    from scipy.stats import t

    half = float(t.ppf(1 - TAIL, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def ratio_interval(ratios: Values) -> Interval:
    """The geometric mean of positive ratios with Student's interval of their logarithms, see `mean_interval`."""
    value, low, high = mean_interval(np.log(ratios))
    return Interval(math.exp(value), math.exp(low), math.exp(high))


def median_interval(values: Values) -> Interval:
    """The median with its percentile bootstrap interval (B. Efron, Annals of Statistics 7(1), 1979).

    The draws have a fixed seed: the same values give the same interval.
    """
    given = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
    low, high = np.percentile(np.median(given[draws], axis=1), (100 * TAIL, 100 * (1 - TAIL)))
    return Interval(float(np.median(given)), float(low), float(high))
