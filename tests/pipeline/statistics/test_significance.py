"""The statistics of a comparison, computed by hand, and their rate of false alarms, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gradus.pipeline.statistics.significance import (
    MeanEstimate,
    all_of,
    best_of_all,
    holm,
    over_prompts,
    over_seeds,
    paired,
    verdict,
)


def test_over_seeds_by_hand() -> None:
    found = over_seeds([0.6, 0.7, 0.8])  # sd 0.1, standard error 0.1 / sqrt(3) = 0.0577350, t(0.975, 2) = 4.3026527
    assert found.mean == pytest.approx(0.7)
    assert [found.low, found.high] == pytest.approx([0.7 - 0.24841377, 0.7 + 0.24841377], rel=1e-6)
    assert over_seeds([0.6]) == MeanEstimate(0.6, None, None)


def test_over_prompts_by_hand() -> None:
    found = over_prompts(np.array([[1, 0, 1, 0], [1, 0, 0, 0]]))  # prompts 1, 0, 0.5, 0: mean 0.375, sd 0.4787136
    assert found.mean == pytest.approx(0.375)
    assert (found.high or 0) - found.mean == pytest.approx(1.959964 * 0.47871355 / 2, rel=1e-6)


def test_the_paired_test_by_hand() -> None:
    # seeds' means 2/3 and 1/3: MS_seed = 3 * 1/18 = 1/6; prompts' means 1/2, 0, 1: MS_prompt = 2 * 1/4 = 1/2
    # what is left: +-1/3, -+1/6, -+1/6: MS_rest = (2 * (1/9 + 1/36 + 1/36)) / 2 = 1/6
    # total 1/6 + 1/2 - 1/6 = 1/2, standard error sqrt(1/2 / 6); df = (1/4) / ((1/36)/1 + (1/4)/2 + (1/36)/2) = 3/2
    found = paired(np.array([[1, 0, 1], [0, 0, 1]]))
    assert found.mean == pytest.approx(0.5) and found.df == pytest.approx(1.5)
    half = float(stats.t.ppf(0.975, 1.5)) * math.sqrt(1 / 12)
    assert [found.low, found.high] == pytest.approx([0.5 - half, 0.5 + half])
    assert found.p == pytest.approx(2 * float(stats.t.sf(0.5 / math.sqrt(1 / 12), 1.5)))


def test_seeds_that_differ_alone_give_the_t_test_over_seeds() -> None:
    """Where all prompts of a seed are alike, MS_prompt = MS_rest = 0 and only S values are left."""
    found, simple = paired(np.repeat([[0.1], [0.2], [0.6]], 50, axis=1)), over_seeds([0.1, 0.2, 0.6])
    assert found.df == pytest.approx(2)
    assert [found.low, found.high, found.p] == pytest.approx([simple.low, simple.high, simple.p])


def test_the_paired_test_has_nothing_to_say_of_one_seed_and_of_no_difference() -> None:
    assert paired(np.array([[1, 0, -1]])) == MeanEstimate(0.0, None, None)
    found = paired(np.zeros((3, 5)))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_paired_test_keeps_its_promise_where_prompts_alone_do_not() -> None:
    """Two methods without a true difference whose seeds differ: false alarms at most 5 %, up to chance.

    A test over prompts alone, which takes these very policies for all there could be, alarms in a third of the cases.
    """
    draw, alarms, naive, rounds = np.random.default_rng(0), 0, 0, 800
    for _ in range(rounds):
        shift = draw.normal(0, 0.04, (3, 1)) + draw.normal(0, 0.2, (1, 400))
        uniform, better = draw.random((3, 400)), np.clip(0.15 + shift / 2, 0, 1)
        differences = (uniform < better).astype(int) - (uniform > 1 - np.clip(0.15 - shift / 2, 0, 1))
        p = paired(differences).p
        assert p is not None
        alarms += p < 0.05
        each = differences.mean(0)
        naive += abs(each.mean()) > 1.96 * each.std(ddof=1) / math.sqrt(len(each))
    assert alarms / rounds < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)
    assert naive / rounds > 0.2


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])  # 4 x .01, 3 x .03, 2 x .04 -> .09
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_verdicts() -> None:
    assert verdict(MeanEstimate(0.03, 0.001, 0.06), 0.01) == "supported"
    assert verdict(MeanEstimate(-0.03, -0.06, 0.009), 0.01) == "not supported"
    assert verdict(MeanEstimate(0.03, -0.001, 0.06), 0.01) == "undecided"
    assert verdict(MeanEstimate(0.03, None, None), 0.01) == "undecided"
    above, open_ = MeanEstimate(0.05, 0.02, 0.08, p=0.001), MeanEstimate(0.02, -0.01, 0.05, p=0.2)
    below = MeanEstimate(-0.05, -0.08, -0.02, p=0.001)
    assert best_of_all([above, above], 0.01) == "supported"
    assert best_of_all([above, open_], 0.01) == "undecided"
    assert best_of_all([above, below], 0.01) == "not supported"
    barely = MeanEstimate(0.05, 0.001, 0.099, p=0.03)  # each by itself, but not both: Holm makes it 0.06
    assert best_of_all([barely, barely], 0.01) == "undecided"
    assert best_of_all([], 0.01) == "undecided"
    assert all_of(["supported", "undecided"]) == "undecided"
    assert all_of(["supported", "not supported", "undecided"]) == "not supported"
