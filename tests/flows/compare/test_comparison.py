"""The statistics of a comparison, by hand; and the rules that turn them into verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gradus.flows.compare.report.analysis import analyse
from gradus.flows.compare.report.claims import SINGLE, Facts, judge
from gradus.pipeline.statistics.curves import crossing, early_gain, smooth, worst_drop
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


def answers(accuracy: float, seed: int, prompts: int = 400) -> dict[str, bool]:
    draw = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).random(prompts)
    right = draw.random(prompts) < np.clip(accuracy + 0.3 * (difficulty - 0.5), 0, 1)
    return {f"p{n}": bool(one) for n, one in enumerate(right)}


def facts(accuracy: dict[str, float], early: dict[str, float], drop: dict[str, float]) -> Facts:
    seeds = range(3)
    return Facts(
        early={arm: {s: early[arm] + 0.001 * s for s in seeds} for arm in accuracy},
        drop={arm: {s: drop[arm] + 0.001 * s * n for s in seeds} for n, arm in enumerate(accuracy)},
        correct={arm: {s: answers(share, s) for s in seeds} for arm, share in accuracy.items()},
    )


def test_claims_are_supported_by_what_they_say_and_refuted_by_the_opposite() -> None:
    accuracy = {"dapo": 0.6, "vapo": 0.6, "gfpo": 0.75, "srpo": 0.45, "staged": 0.95}
    early = {"dapo": 0.1, "vapo": 0.01, "gfpo": 0.05, "srpo": 0.05, "staged": 0.1}
    drop = {"dapo": 0.2, "vapo": 0.0, "gfpo": 0.05, "srpo": 0.0, "staged": 0.1}
    found = {claim.claim: claim.verdict for claim in judge(facts(accuracy, early, drop))}
    assert set(found.values()) == {"supported"} and len(found) == 8
    opposite = {"dapo": 0.6, "vapo": 0.6, "gfpo": 0.45, "srpo": 0.75, "staged": 0.3}
    turned = [{arm: 0.2 - value for arm, value in each.items()} for each in (early, drop)]
    found = {claim.claim: claim.verdict for claim in judge(facts(opposite, *turned))}
    assert set(found.values()) == {"not supported"}


def test_claims_stay_open_without_their_arms_or_with_one_seed() -> None:
    whole = facts(dict.fromkeys(SINGLE, 0.5), dict.fromkeys(SINGLE, 0.1), dict.fromkeys(SINGLE, 0.1))
    some = Facts(*({arm: each[arm] for arm in ("dapo", "gfpo")} for each in vars(whole).values()))
    assert {claim.verdict for claim in judge(some)} == {"undecided"}
    assert any("vapo, srpo not compared" in claim.because for claim in judge(some))
    one = Facts(*({arm: {0: seeds[0]} for arm, seeds in each.items()} for each in vars(whole).values()))
    assert {claim.verdict for claim in judge(one)} == {"undecided"}


def test_the_analysis_by_hand() -> None:
    def arm(name: str, seed: int, end: float, right: list[bool]) -> dict:
        return {
            "arm": name, "seed": seed, "start": {"content": "c", "accuracy": 0.5}, "run": name,
            "marks": [[400, "ends"]], "curve": [[0, 0.5], [100, 0.5], [200, end], [300, end], [400, end]],
            "rollouts": 400, "tokens": 4000, "seconds": 10.0, "accuracy": sum(right) / 4,
            "heldout": {str(n): one for n, one in enumerate(right)},
            "entropy": [[100, 0.2], [200, 0.1]], "length": [], "reward": [], "stages": [],
        }  # fmt: skip

    measured = [arm("a", s, 0.5 + 0.1 * s, [True, False, s == 0, False]) for s in (0, 1)]
    measured += [arm("b", s, 0.8, [True, True, True, s == 1]) for s in (0, 1)]
    found = analyse(measured, ["a", "b"])
    a, b = found["arms"]
    assert (a["accuracy"], b["accuracy"]) == (0.375, 0.875) and a["accuracy_each"] == [0.5, 0.25]
    assert (a["gain"], b["gain"]) == pytest.approx((-0.125, 0.375))
    # the best smoothed point is 0.8 on both seeds: 0.5 + 0.9 x 0.3 = 0.77; b's smoothed curve is 0.5, 0.6, 0.7, 0.8
    assert a["near_best_at"] is None and a["near_best_reached"] == 0
    assert b["near_best_at"] == pytest.approx(200 + 100 * 0.7)
    (pair,) = found["pairs"]  # a minus b, prompt by prompt: seed 0, then seed 1
    differences = np.array([[0, -1, 0, 0], [0, -1, -1, -1]])
    assert pair["mean"] == differences.mean() == -0.5
    assert pair["p"] == paired(differences).p == pair["p_holm"]
    assert found["early_until"] == 100 and a["early_gain"]["mean"] == 0.0
