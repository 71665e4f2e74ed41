"""What a probe's statistics say, by hand, and on simulated policies whose truth is known."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from gradus.pipeline.estimates.diagnosis import Group, classes, diagnose, key_use, noise_share, ranked_ties

NAN = math.nan


def group(rewards: list[float], again: list[float] | None = None, **more: list) -> Group:
    """A group whose correctness is its reward."""
    again = rewards if again is None else again
    lengths = more.pop("lengths", [4] * len(rewards))
    truncated = more.pop("truncated", [False] * len(rewards))
    return Group(rewards, again, rewards, again, lengths, truncated, more)


def test_noise_by_hand() -> None:
    # r = 1,0,0,1 and r' = 1,0,1,1: r - r' = 0,0,-1,0, variance 1/4, half of it 1/8.
    # var(r) = 1/3, var(r') = 1/4, mean 7/24. The share is (1/8) / (7/24) = 3/7.
    found = noise_share([group([1, 0, 0, 1], [1, 0, 1, 1])])
    assert found is not None and found.value == pytest.approx(3 / 7)


def test_a_shift_of_all_rewards_is_no_noise_to_a_group() -> None:
    found = noise_share([group([1, 0, 1, 0], [3, 2, 3, 2])])
    assert found is not None and found.value == 0
    assert noise_share([group([1, 1], [1, 1])]) is None


def test_noise_finds_the_share_that_was_put_in() -> None:
    random.seed(0)
    groups = []
    for _ in range(400):
        true = [random.gauss(0, 1) for _ in range(8)]
        groups.append(group([t + random.gauss(0, 0.5) for t in true], [t + random.gauss(0, 0.5) for t in true]))
    found = noise_share(groups)
    assert found is not None and found.value == pytest.approx(0.25 / 1.25, abs=0.02)
    assert found.low <= 0.2 <= found.high


def test_key_use_by_hand() -> None:
    # Rewards 1, 0, 0, 0; steps 0.9, 0.5, 0.5, 0.95. Three tied pairs among the wrong ones, of which steps break two;
    # three pairs of right and wrong, of which steps prefer the right one in two.
    found = key_use([group([1, 0, 0, 0], steps=[0.9, 0.5, 0.5, 0.95])], "steps")
    assert found.breaks is not None and found.breaks.value == pytest.approx(2 / 3)
    assert found.agrees is not None and found.agrees.value == pytest.approx(2 / 3)


def test_shorter_prefers_fewer_tokens() -> None:
    found = key_use([group([1, 0], lengths=[3, 9])], "shorter")
    assert found.agrees is not None and found.agrees.value == 1 and found.breaks is None


def test_completions_without_a_score_make_no_pair() -> None:
    found = key_use([group([1, 0, NAN], steps=[0.5, NAN, 0.7])], "steps")
    assert found.breaks is None and found.agrees is None
    assert classes(group([1, 0, NAN], steps=[0.5, NAN, 0.7]), ["reward", "steps"]) == [1]


def test_a_ranking_breaks_a_tie_by_any_of_its_keys() -> None:
    # Three wrong ones: three tied pairs. The steps tell one from the two others, the length those two apart.
    wrong = group([0, 0, 0], steps=[0.5, 0.2, 0.2], lengths=[4, 4, 6])
    for keys, value in ((["reward"], 0), (["reward", "steps"], 2 / 3), (["reward", "steps", "shorter"], 1)):
        found = ranked_ties([wrong], keys)
        assert found is not None and found.value == pytest.approx(value)


def test_diagnosis_of_two_prompts_by_hand() -> None:
    easy = group([1, 1, 1, 0], lengths=[2, 4, 4, 4], truncated=[False, False, False, True], steps=[1, 1, 1, 0.5])
    hard = group([0, 0, 0, 0], lengths=[6, 6, 8, 8], truncated=[False] * 4, steps=[0, 0.25, 0, 0])
    found = diagnose([easy, hard], ["reward", "steps"], max_tokens=8)
    assert (found.prompts, found.samples) == (2, 4)
    assert {k: e.value for k, e in found.pass_at.items()} == pytest.approx({1: 3 / 8, 2: 1 / 2, 4: 1 / 2})
    # easy: 3 of 6 pairs are all right, 3 mixed; hard: all pairs wrong.
    assert {k: e.value for k, e in found.mixed.items()} == pytest.approx({2: 1 / 4, 4: 1 / 2})
    assert {k: e.value for k, e in found.all_right.items()} == pytest.approx({2: 1 / 4, 4: 0})
    assert {k: e.value for k, e in found.all_wrong.items()} == pytest.approx({2: 1 / 2, 4: 1 / 2})
    assert {k: e.value for k, e in found.useful.items()} == {k: e.value for k, e in found.mixed.items()}
    # steps order 3 of the 6 hard pairs, and add nothing to the easy ones.
    assert {k: e.value for k, e in found.ordered.items()} == pytest.approx({2: 1 / 2, 4: 1})
    assert found.success == [1, 0, 0, 1, 0, 0]
    assert (found.reward_mean, found.within, found.between) == pytest.approx((3 / 8, 1 / 8, 9 / 32 - 1 / 32))
    assert found.ties.value == pytest.approx((3 + 6) / 12)
    assert (found.length_mean, found.length_high, found.truncated.value) == pytest.approx((42 / 8, 8, 1 / 8))
    assert [use.key for use in found.keys] == ["steps", "shorter"]


@pytest.mark.parametrize("k", [2, 4, 8])
def test_expected_mixed_groups_are_those_of_fresh_groups(k: int) -> None:
    """The share at K from groups of 16 is what groups of K of the same policy have: 1 - p^K - (1-p)^K."""
    random.seed(k)
    chances = [random.random() for _ in range(1000)]
    groups = [group([float(random.random() < p) for _ in range(16)]) for p in chances]
    found = diagnose(groups, ["reward"], 8).mixed[k]
    truth = fmean(1 - p**k - (1 - p) ** k for p in chances)
    assert found.low <= truth <= found.high and found.high - found.low < 0.08


def test_failed_scores_are_counted_and_left_out() -> None:
    found = diagnose([group([1, NAN, 0, 0]), group([NAN, NAN, NAN, 1])], ["reward"], 8)
    assert found.failed.value == pytest.approx(4 / 8)
    assert found.pass_at[1].value == pytest.approx((1 / 3 + 1) / 2)
    assert set(found.mixed) == {2}  # no prompt has four completions with a score
