"""Intervals, computed by hand."""

from __future__ import annotations

import math

import pytest

from gradus.pipeline.statistics.intervals import gain_bounds, mean_bounds, share_bounds, widened

RTOL = 1e-5


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # z^2/n = 3.841459/10 = 0.384146; centre (0.8 + 0.192073) / 1.384146 = 0.716740;
        # half 1.959964 * sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) / 1.384146 = 0.226579
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),  # 0.384146 / 1.384146
        (10, 10, 0.722467, 1.0),
        (500, 1000, 0.469069, 0.530931),
    ],
)
def test_wilsons_interval_by_hand(correct, total, low, high):
    assert share_bounds(correct, total) == pytest.approx((low, high), rel=1e-5, abs=1e-9)


def test_share_bounds_by_hand() -> None:
    # p = 0.5, n = 100, z = 2: z2/n = 0.04, centre = (0.5 + 0.02) / 1.04 = 0.5,
    # half = 2 sqrt(0.25 / 100 + 0.04 / 400) / 1.04 = 2 * 0.0509902 / 1.04 = 0.0980581
    assert share_bounds(50, 100, 2.0) == pytest.approx((0.4019419, 0.5980581), rel=RTOL)
    # p = 1: centre = (1 + z2/2n) / (1 + z2/n) = 1.02 / 1.04, half = 2 sqrt(0.04 / 400) / 1.04 = 0.02 / 1.04
    assert share_bounds(100, 100, 2.0) == pytest.approx((1.00 / 1.04, 1.0), rel=RTOL)
    assert share_bounds(0, 0, 2.0) == (0.0, 1.0)


def test_student_keeps_the_confidence() -> None:
    # From the tables of t: 95 % on one side is 6.3138 with 1 degree of freedom, 1.9432 with 6, 1.6449 with many.
    z = 1.6448536
    assert [widened(z, n) for n in (1, 6, 10**9)] == pytest.approx([6.313752, 1.943180, z], rel=RTOL)


def test_mean_bounds_by_hand() -> None:
    # mean 4, variance (4 + 0 + 4) / 2 = 4, error 2 / sqrt(3); t of 95 % on one side with 2 degrees: 2.919986
    half = 2.919986 * 2 / math.sqrt(3)
    assert mean_bounds([2.0, 4.0, 6.0], 1.6448536) == pytest.approx((4 - half, 4 + half), rel=RTOL)
    assert mean_bounds([0.25] * 5, 3.0) == (0.25, 0.25)


def test_gain_bounds_by_hand() -> None:
    # x = -1.5 -0.5 0.5 1.5 (in tens of steps), y = 0 2 1 3: b = (0 - 1 + 0.5 + 4.5) / 5 = 0.8, gain 0.8 * 3 = 2.4.
    # line 0.3 1.1 1.9 2.7, rest 0.09 + 0.81 + 0.81 + 0.09 = 1.8, error of b sqrt(1.8 / 2 / 5) = 0.4242641,
    # of the gain 1.2727922; t with 2 degrees 2.919986
    half = 2.919986 * 1.2727922
    found = gain_bounds([10, 20, 30, 40], [0.0, 2.0, 1.0, 3.0], 1.6448536)
    assert found == pytest.approx((2.4, 2.4 - half, 2.4 + half), rel=RTOL)
    assert gain_bounds([40, 50, 60], [0.5, 0.5, 0.5], 2.0) == (0.0, 0.0, 0.0)
