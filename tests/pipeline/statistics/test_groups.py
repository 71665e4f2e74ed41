"""Statistics of groups, computed by hand."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean

import pytest

from gradus.pipeline.statistics.groups import alike, pass_at_k, share, variance_parts


def test_pass_at_k_is_one_minus_the_chance_of_only_wrong_draws() -> None:
    # 10 completions, 3 right: C(7, 4) = 35 of C(10, 4) = 210 draws hold none: 1 - 35/210 = 5/6.
    assert pass_at_k(10, 3, 4) == pytest.approx(5 / 6)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 8) == 1.0  # only 7 are wrong
    assert pass_at_k(10, 0, 10) == 0.0


@pytest.mark.parametrize("sizes", [[3, 1], [2, 2, 2], [5], [1, 1, 1]])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_alike_counts_the_uniform_draws(sizes: list[int], k: int) -> None:
    items = [label for label, size in enumerate(sizes) for _ in range(size)]
    draws = list(itertools.combinations(items, k))
    assert alike(sizes, k) == pytest.approx(fmean(len(set(draw)) == 1 for draw in draws))


def test_share_by_hand() -> None:
    # 2/4, 0/2, 4/4: 6/10. Left out one by one: 4/6, 6/8, 2/6; their mean 0.5833; squared distances 0.00694, 0.02778,
    # 0.0625, sum 0.09722, times 2/3: 0.06481. Trials: 0.24 / 0.06481 = 3.703, more than the 3 prompts.
    found = share([2, 0, 4], [4, 2, 4])
    assert found is not None and found.value == pytest.approx(0.6)
    z2, n = 1.959964**2, 0.24 / 0.0648148
    centre, half = (0.6 + z2 / (2 * n)) / (1 + z2 / n), 1.959964 * math.sqrt(0.24 / n + z2 / (4 * n * n)) / (1 + z2 / n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-4)


def test_a_share_without_spread_has_an_interval_all_the_same() -> None:
    found = share([0] * 100, [16] * 100)  # Wilson for 0 of 100 prompts: z2 / (100 + z2) = 3.8415 / 103.8415
    assert found is not None and (found.low, found.high) == (0.0, pytest.approx(0.0370, abs=1e-4))
    assert share([0, 0], [0, 0]) is None


def test_completions_of_one_prompt_count_as_one_where_they_agree() -> None:
    """Sixteen copies of each answer must not make the interval four times as narrow."""
    once, copied = share([1, 0] * 20, [1] * 40), share([16, 0] * 20, [16] * 40)
    assert once == copied


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random.seed(3)
    hits = 0
    for _ in range(300):
        chances = [random.betavariate(0.5, 0.5) for _ in range(40)]
        counts = [sum(random.random() < p for _ in range(8)) for p in chances]
        found = share(counts, [8] * 40)
        assert found is not None
        hits += found.low <= 0.5 <= found.high
    assert 0.92 <= hits / 300 <= 0.98  # 95 %; its standard error is 1.1 %


def test_variance_parts_by_hand() -> None:
    # Groups 1,0,0,0 and 1,1,1,0: variance 1/4 each, within 0.25. Means 1/4 and 3/4, variance 1/8; less 0.25 / 4: 1/16.
    assert variance_parts([[1, 0, 0, 0], [1, 1, 1, 0]]) == pytest.approx((0.25, 0.0625))
    assert variance_parts([[1, 1], [0, 0]]) == pytest.approx((0.0, 0.5))
    assert variance_parts([[1.0]]) == (0.0, 0.0)
