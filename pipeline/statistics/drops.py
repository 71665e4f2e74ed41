"""Tests of two measurements: whether one has dropped below the best so far, as the collapse guard asks, and whether
two policies differ on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradus.pipeline.statistics.intervals import mean_and_error


def paired_drop(best: Sequence[float], now: Sequence[float]) -> float:
    """McNemar's exact test on the same prompts: the p-value of "now is no worse than the best".

    Only prompts that were answered differently carry information. Let b be the number that were right and are wrong
    now, and c the number of the opposite. If nothing has changed, b is binomial(b + c, 1/2): p = P(B >= b).

    Shapes: a 0 or 1 for each prompt, in the same order.

    >>> paired_drop([1, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1])  # b = 3, c = 1: (4 + 1) / 16
    0.3125
    """
    from scipy.special import bdtrc

    lost = sum(before > after for before, after in zip(best, now, strict=True))
    won = sum(before < after for before, after in zip(best, now, strict=True))
    return float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0


def paired_change(one: Sequence[float], two: Sequence[float]) -> float:
    """McNemar's exact test on the same prompts, two-sided: the p-value of "both are equally often right".

    Twice the smaller of the two one-sided p-values, at most 1. Shapes: a 0 or 1 for each prompt, in the same order.

    >>> paired_change([1, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1])  # b = 3, c = 1: 2 (4 + 1) / 16
    0.625
    """
    return min(1.0, 2 * min(paired_drop(one, two), paired_drop(two, one)))


def mean_drop(best: Sequence[float], now: Sequence[float]) -> float:
    """Welch's test on two sets of independent measurements: the p-value of "now is no worse than the best".

    t = (mean best - mean now) / sqrt(e1^2 + e2^2), with Welch's and Satterthwaite's degrees of freedom.
    Edge: where neither set has any spread, 0 for a lower mean and 1 for any other.

    >>> round(mean_drop([0.8, 0.9, 1.0], [0.3, 0.5, 0.4]), 4)  # t = 0.5 / sqrt(2 * 0.01 / 3) = 6.12, 4 degrees
    0.0018
    """
    from scipy.special import stdtr

    (high, e1, n1), (low, e2, n2) = mean_and_error(best), mean_and_error(now)
    variance = e1 * e1 + e2 * e2
    if variance == 0:
        return 0.0 if low < high else 1.0
    freedom = variance**2 / (e1**4 / n1 + e2**4 / n2)
    return float(stdtr(freedom, (low - high) / math.sqrt(variance)))


def alarm_level(risk: float, looks: int) -> float:
    """The p-value below which a comparison with the best is an alarm, so that its risk in a whole stage is ``risk``.

    The best is the luckiest of all measurements so far, and every new one is compared with it. At look t it is one of
    t earlier measurements, the start included, so over all looks there are looks (looks + 1) / 2 pairs that could
    raise an alarm; each gets an equal part of the risk (Bonferroni). The rule that a drop must show in several
    measurements only makes false alarms rarer.

    >>> alarm_level(0.01, 4)
    0.001
    """
    return risk / (looks * (looks + 1) / 2)
