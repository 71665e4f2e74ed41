"""Tests of a drop below the best, computed by hand."""

from __future__ import annotations

import math

import pytest

from gradus.pipeline.statistics.drops import alarm_level, mean_drop, paired_drop

RTOL = 1e-5


def test_paired_drop_by_hand() -> None:
    best, now = [1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1, 0]  # 5 lost, 1 won: (6 + 1) / 64
    assert paired_drop(best, now) == pytest.approx(7 / 64, rel=RTOL)
    assert paired_drop(now, best) == pytest.approx(63 / 64, rel=RTOL)  # 1 lost, 5 won: all but the one with none lost
    assert paired_drop(best, best) == 1.0


def test_mean_drop_by_hand() -> None:
    # means 3 and 1, variances 1 and 1, 3 each: t = 2 / sqrt(2 / 3) = 2.449490, 4 degrees of freedom.
    # Abramowitz and Stegun 26.7.4: P(|T4| < t) = sin a (1 + cos^2 a / 2) with tan a = t / 2,
    # so that sin a = t / sqrt(t^2 + 4) and cos^2 a = 4 / (t^2 + 4)
    t = 2.4494897
    inside = t / math.sqrt(t * t + 4) * (1 + 2 / (t * t + 4))
    assert mean_drop([2.0, 3.0, 4.0], [0.0, 1.0, 2.0]) == pytest.approx((1 - inside) / 2, rel=RTOL)
    assert mean_drop([0.0, 1.0, 2.0], [2.0, 3.0, 4.0]) == pytest.approx((1 + inside) / 2, rel=RTOL)
    assert (mean_drop([1.0, 1.0], [0.5, 0.5]), mean_drop([1.0, 1.0], [1.0, 1.0])) == (0.0, 1.0)


def test_alarm_level_by_hand() -> None:
    assert alarm_level(0.05, 1) == 0.05
    assert alarm_level(0.05, 9) == pytest.approx(0.05 / 45)
