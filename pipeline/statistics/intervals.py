"""The statistics that decide when a stage ends or has collapsed: pure functions of what was measured.

A rule never goes by one noisy point. It takes an interval and acts once the whole of it, on the side that counts, is
beyond what the rule names. ``errors`` says how many standard errors wide that side is; where the error itself is
estimated from few measurements, Student's t keeps the confidence what it would be for many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Bounds = tuple[float, float]
"""Lower and upper end."""


def share_bounds(successes: int, total: int, errors: float) -> Bounds:
    """Wilson's interval of a share, ``errors`` standard errors to each side.

    Unlike the normal interval it stays inside [0, 1] and has a width at 0 and 1.
    Source: E. B. Wilson (1927).

    >>> [round(bound, 4) for bound in share_bounds(150, 300, 1.645)]
    [0.4527, 0.5473]
    """
    if not total:
        return 0.0, 1.0
    share, z2 = successes / total, errors * errors / total
    centre = (share + z2 / 2) / (1 + z2)
    half = errors * math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def widened(errors: float, freedom: int) -> float:
    """The number of estimated standard errors with the confidence of ``errors`` known ones (Student's t).

    >>> round(widened(1.645, 6), 3), round(widened(1.645, 10_000), 3)
    (1.943, 1.645)
    """
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(freedom, ndtr(errors)))


def mean_bounds(values: Sequence[float], errors: float) -> Bounds:
    """Interval of the mean of independent measurements, by their own spread.

    Edge: measurements that are all equal have no spread and so a bound without width.

    >>> [round(bound, 3) for bound in mean_bounds([1.0, 2.0, 3.0], 1.645)]
    [0.314, 3.686]
    """
    mean, error, freedom = _mean(values)
    half = widened(errors, freedom) * error
    return mean - half, mean + half


def gain_bounds(steps: Sequence[float], values: Sequence[float], errors: float) -> tuple[float, float, float]:
    """What the least-squares line through the points gains from the first step to the last, with its bounds.

    gain = b (x_n - x_1), b = sum (x - mean x)(y - mean y) / sum (x - mean x)^2, and the error of b from the spread
    around the line with n - 2 degrees of freedom. A curve that still bends is a worse line, so its bounds are wider.

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


def paired_drop(best: Sequence[float], now: Sequence[float]) -> float:
    """McNemar's exact test on the same prompts: the p-value of "now is no worse than the best".

    Only prompts that were answered differently tell anything. Of b that were right and are wrong now, and c the other
    way round, b is binomial(b + c, 1/2) where nothing has changed: p = P(B >= b).

    Shapes: a 0 or 1 for each prompt, in the same order.

    >>> paired_drop([1, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1])  # b = 3, c = 1: (4 + 1) / 16
    0.3125
    """
    from scipy.special import bdtrc

    lost = sum(before > after for before, after in zip(best, now, strict=True))
    won = sum(before < after for before, after in zip(best, now, strict=True))
    return float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0


def mean_drop(best: Sequence[float], now: Sequence[float]) -> float:
    """Welch's test on two sets of independent measurements: the p-value of "now is no worse than the best".

    t = (mean best - mean now) / sqrt(e1^2 + e2^2), with Welch's and Satterthwaite's degrees of freedom.
    Edge: where neither has any spread, 0 for a lower mean and 1 for any other.

    >>> round(mean_drop([0.8, 0.9, 1.0], [0.3, 0.5, 0.4]), 4)  # t = 0.5 / sqrt(2 * 0.01 / 3) = 6.12, 4 degrees
    0.0018
    """
    from scipy.special import stdtr

    (high, e1, n1), (low, e2, n2) = _mean(best), _mean(now)
    variance = e1 * e1 + e2 * e2
    if variance == 0:
        return 0.0 if low < high else 1.0
    freedom = variance**2 / (e1**4 / n1 + e2**4 / n2)
    return float(stdtr(freedom, (low - high) / math.sqrt(variance)))


def alarm_level(risk: float, looks: int) -> float:
    """The p-value under which a comparison with the best is an alarm, so that its risk in a whole stage is ``risk``.

    The best is the luckiest of all measurements so far, and every new one is compared with it. At look t it is one of
    t earlier ones, the start included, so over all looks there are looks (looks + 1) / 2 pairs that could alarm; each
    gets an equal part (Bonferroni). A fall must show in several measurements, which only makes false alarms rarer.

    >>> alarm_level(0.01, 4)
    0.001
    """
    return risk / (looks * (looks + 1) / 2)


def _mean(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard error and degrees of freedom. Shapes: at least two values."""
    count = len(values)
    mean = sum(values) / count
    spread = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(spread / count), count - 1
