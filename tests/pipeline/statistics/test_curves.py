"""What is read off a curve, computed by hand."""

from __future__ import annotations

import pytest

from gradus.pipeline.statistics.curves import crossing, early_gain, smooth, worst_drop


def test_what_is_read_off_a_curve_by_hand() -> None:
    curve = [(0, 0.5), (100, 0.6), (200, 0.8), (300, 0.7)]
    assert crossing(curve, 0.7) == pytest.approx(150) and crossing(curve, 0.9) is None and crossing(curve, 0.4) == 0.0
    # gains 0, 0.1, 0.2 at 0, 100, 150: areas 5 and 7.5 over 150
    assert early_gain(curve, 150) == pytest.approx(12.5 / 150)
    assert early_gain(curve, 600) == pytest.approx((5 + 20 + 25 + 300 * 0.2) / 600)  # beyond its end it stays level
    assert worst_drop(curve, window=1) == pytest.approx(0.1)
    # smoothed: 0.55, 0.6333, 0.7, 0.75 never falls
    assert worst_drop(curve) == 0.0
    assert [y for _, y in smooth(curve)] == pytest.approx([0.55, 1.9 / 3, 0.7, 0.75])
    # a dip that is followed by a higher peak, and a deeper one after it
    assert worst_drop([(0, 0.5), (1, 0.3), (2, 0.9), (3, 0.4), (4, 0.6)], window=1) == pytest.approx(0.5)
