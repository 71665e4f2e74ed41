"""Intervals by hand."""

from __future__ import annotations

import pytest

from pipeline.evaluation import wilson_interval


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
def test_wilson(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), rel=1e-5, abs=1e-9)
