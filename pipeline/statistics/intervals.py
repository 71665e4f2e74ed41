"""Confidence intervals of shares, means and slopes.

``errors`` is the half width of an interval in standard errors. Where the standard error itself is estimated from few
measurements, :func:`widened` replaces ``errors`` by the quantile of Student's t with the same confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959964
"""Half width of a 95 % interval in standard errors."""

Bounds = tuple[float, float]
"""Lower and upper end."""


def share_bounds(successes: float, trials: float, errors: float = Z) -> Bounds:
    """Wilson's interval of a share, ``errors`` standard errors to each side; by default the 95 % interval.

    Unlike the normal interval it stays inside [0, 1] and has a width at 0 and 1. The number of trials need not be
    whole (an effective number of trials).
    Edge: without any trial, the whole range. Source: E. B. Wilson (1927).

    >>> [round(bound, 4) for bound in share_bounds(150, 300, 1.645)]
    [0.4527, 0.5473]
    >>> [round(bound, 4) for bound in share_bounds(8, 10)]
    [0.4902, 0.9433]
    """
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, errors * errors / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = errors * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_bounds(only_one: int, only_two: int, trials: int, errors: float = Z) -> Bounds:
    """Interval of the difference of two shares, the second minus the first, on the same trials.

    ``only_one`` trials succeeded for the first alone, ``only_two`` for the second alone. With p1 = (only_one + 1) /
    (n + 2) and p2 likewise: p2 - p1 +- errors sqrt((p1 + p2 - (p2 - p1)^2) / (n + 2)), inside [-1, 1].
    Source: D. G. Bonett and R. M. Price (2012).

    >>> [round(bound, 4) for bound in paired_bounds(3, 7, 98)]  # p1 = 0.04, p2 = 0.08, 100 in the denominator
    [-0.0274, 0.1074]
    """
    p1, p2 = (only_one + 1) / (trials + 2), (only_two + 1) / (trials + 2)
    half = errors * math.sqrt((p1 + p2 - (p2 - p1) ** 2) / (trials + 2))
    return max(-1.0, p2 - p1 - half), min(1.0, p2 - p1 + half)


def mean_bounds(values: Sequence[float], errors: float) -> Bounds:
    """Interval of the mean of independent measurements, from their own spread.

    Edge: measurements that are all equal have no spread, so their interval has no width.

    >>> [round(bound, 3) for bound in mean_bounds([1.0, 2.0, 3.0], 1.645)]
    [0.314, 3.686]
    """
    mean, error, freedom = mean_and_error(values)
    half = widened(errors, freedom) * error
    return mean - half, mean + half


def gain_bounds(steps: Sequence[float], values: Sequence[float], errors: float) -> tuple[float, float, float]:
    """What the least-squares line through the points gains from the first step to the last, with its bounds.

    gain = b (x_n - x_1), b = sum (x - mean x)(y - mean y) / sum (x - mean x)^2, and the error of b from the spread
    around the line with n - 2 degrees of freedom. A line fits a curve that still bends less well, so its bounds are
    wider.

    Shapes: n steps and n values, n >= 3. Units: of the values. Returns (gain, low, high).

    >>> [round(number, 3) for number in gain_bounds([10, 20, 30, 40], [0.1, 0.3, 0.2, 0.4], 1.645)]
    [0.24, -0.132, 0.612]
    """
    count = len(steps)
    x_mean, y_mean = sum(steps) / count, sum(values) / count
    x = [step - x_mean for step in steps]
    squares = sum(each * each for each in x)
    slope = sum(each * value for each, value in zip(x, values, strict=True)) / squares
    rest = sum((value - y_mean - slope * each) ** 2 for each, value in zip(x, values, strict=True))
    span = steps[-1] - steps[0]
    half = widened(errors, count - 2) * math.sqrt(rest / (count - 2) / squares) * span
    return slope * span, slope * span - half, slope * span + half


def widened(errors: float, freedom: int) -> float:
    """The number of estimated standard errors with the confidence of ``errors`` known ones (Student's t).

    >>> round(widened(1.645, 6), 3), round(widened(1.645, 10_000), 3)
    (1.943, 1.645)
    """
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(freedom, ndtr(errors)))


def mean_and_error(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, its standard error, and the degrees of freedom of that error. Shapes: at least two values."""
    count = len(values)
    mean = sum(values) / count
    spread = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(spread / count), count - 1
