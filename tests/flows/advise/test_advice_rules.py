"""The decision table, at its limits and on both sides of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradus.flows.advise import rules
from gradus.flows.advise.rules import Advice, Situation, decide
from gradus.pipeline.estimates.diagnosis import Diagnosis, KeyUse
from gradus.pipeline.statistics.groups import Estimate

SITUATION = Situation(
    untrained=False,
    trained=False,
    demonstrations=True,
    group_size=8,
    reinforcement_steps=280,
    rewarded=("exact_answer",),
)


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def by_size(*values: float) -> dict[int, Estimate]:
    return {2 ** (n + 1): exactly(value) for n, value in enumerate(values)}


STEPS = KeyUse("equation_steps", exactly(0.3), exactly(0.9))
DIAGNOSIS = Diagnosis(
    prompts=128, samples=16, pass_at={1: exactly(0.4), **by_size(0.5, 0.6, 0.7, 0.8)},
    mixed=by_size(0.2, 0.4, 0.6, 0.7),
    all_wrong=by_size(0.4, 0.35, 0.25, 0.2), all_right=by_size(0.4, 0.25, 0.15, 0.1),
    useful=by_size(0.2, 0.4, 0.6, 0.7),
    ordered=by_size(0.3, 0.6, 0.8, 0.9), success=[20, 40, 10, 10, 20, 28], reward_mean=0.4, within=0.1, between=0.1,
    noise=exactly(0.0), flips=exactly(0.0), failed=exactly(0.0), ties=exactly(0.8),
    ranking=("reward", "equation_steps"), ranked_ties=exactly(0.3),
    keys=[STEPS, KeyUse("shorter", exactly(0.3), exactly(0.5))],
    length_mean=20.0, length_high=30, max_tokens=40, truncated=exactly(0.0),
)  # fmt: skip


def table(situation: Situation = SITUATION, **changes: object) -> dict[str, Advice]:
    """topic -> advice, on the example with some of it changed."""
    return {each.topic: each for each in decide(replace(DIAGNOSIS, **changes), situation)}


def pass_at(first: Estimate, last: Estimate) -> dict[int, Estimate]:
    return {1: first, 16: last}


def test_a_policy_that_can_learn_gets_the_whole_table() -> None:
    found = table()
    values = {topic: (each.verdict, each.value) for topic, each in found.items()}
    assert values == {
        "SFT first": ("no", None),
        "already solved": ("no", None),
        "group size K": ("yes", 8),
        "warm-up": ("yes", "dapo"),
        "GFPO": ("yes", ["reward", "equation_steps"]),
        "SRPO": ("yes", "srpo"),
        "max_tokens": ("no", None),
    }
    for each in found.values():
        assert each.reason and each.rule.startswith(("manual:", "ours:"))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 0.0999, "yes"), (0.0, 0.1, "open"), (0.0999, 0.3, "open"), (0.1, 0.3, "no")],
)
def test_sft_is_needed_where_sampling_finds_nothing(low: float, high: float, verdict: str) -> None:
    found = table(pass_at=pass_at(exactly(0.01), Estimate((low + high) / 2, low, high)))
    assert found["SFT first"].verdict == verdict
    assert ("after that" in found) == (verdict == "yes")  # nothing more can be said of a policy that fails
    assert ("warm-up" in found) == (verdict != "yes")


def test_a_lucky_one_of_very_many_is_no_reason_to_skip_sft() -> None:
    many = {1: exactly(0.001), 16: exactly(0.01), 256: exactly(0.2)}
    assert table(pass_at=many)["SFT first"].verdict == "yes"


def test_new_weights_need_sft_whatever_they_score() -> None:
    found = table(replace(SITUATION, untrained=True))
    assert found["SFT first"].verdict == "yes" and "random" in found["SFT first"].reason
    assert "task.demonstrations" not in found["SFT first"].reason
    lacking = table(replace(SITUATION, untrained=True, demonstrations=False))
    assert "set task.demonstrations" in lacking["SFT first"].reason


def test_after_sft_the_advice_does_not_call_sft_unneeded() -> None:
    assert "not needed" in table()["SFT first"].say
    assert "not needed" not in table(replace(SITUATION, trained=True))["SFT first"].say


@pytest.mark.parametrize(("low", "solved"), [(0.9499, False), (0.95, True)])
def test_a_solved_task_leaves_nothing_to_choose(low: float, solved: bool) -> None:
    found = table(pass_at=pass_at(Estimate(0.97, low, 0.99), exactly(1.0)))
    assert (found["already solved"].verdict == "yes") == solved
    assert ("warm-up" in found) != solved


@pytest.mark.parametrize(
    ("mixed", "chosen"),
    [
        ((0.3, 0.5, 0.6, 0.7), 4),  # exactly half is enough
        ((0.3, 0.499, 0.63, 0.7), 8),  # not quite half
        ((0.9, 0.9, 0.9, 0.9), 4),  # never below 4: the mean would take half of a completion's own reward away
        ((0.01, 0.02, 0.04, 0.08), 16),  # rare successes: doubling K doubles the mixed groups
        ((0.2, 0.24, 0.25, 0.26), 4),  # solved and hopeless prompts: a larger K changes little
        ((0.2, 0.24, 0.301, 0.31), 8),  # x 1.254 from 4 to 8, x 1.03 after it
        ((0.2, 0.24, 0.3, 0.31), 4),  # x 1.25: not more than the limit
        ((0.0, 0.0, 0.0, 0.0), 4),
    ],
)
def test_group_size(mixed: tuple[float, ...], chosen: int) -> None:
    assert table(mixed=by_size(*mixed))["group size K"].value == chosen


def test_group_size_stays_open_where_nothing_can_be_compared() -> None:
    found = table(mixed={}, useful={}, ordered={})
    assert found["group size K"].verdict == "open" and "warm-up" not in found


@pytest.mark.parametrize(
    ("noise", "useful", "warm_up"),
    [
        (Estimate(0.3, 0.2, 0.4), exactly(0.6), "vapo"),  # certainly noisy
        (Estimate(0.3, 0.199, 0.4), exactly(0.6), "dapo"),  # open: the quicker one
        (Estimate(0.1, 0.05, 0.199), exactly(0.6), "dapo"),
        (None, exactly(0.6), "dapo"),
        (exactly(0.0), Estimate(0.2, 0.1, 0.299), "vapo"),  # few groups, certainly
        (exactly(0.0), Estimate(0.2, 0.1, 0.3), "dapo"),
    ],
)
def test_warm_up(noise: Estimate | None, useful: Estimate, warm_up: str) -> None:
    found = table(noise=noise, useful=dict.fromkeys((2, 4, 8, 16), useful))["warm-up"]
    assert found.value == warm_up
    assert ("probe more prompts" in found.reason) == (noise is not None and noise.low < 0.2 <= noise.high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.3, "yes"), (0.0999, 0.3, "open"), (0.0999, 0.1, "open"), (0.0, 0.0999, "no")]
)
def test_gfpo_needs_ties_that_its_keys_break(low: float, high: float, verdict: str) -> None:
    nothing = KeyUse("equation_steps", exactly(0.0), exactly(0.9))
    broken = Estimate((low + high) / 2, low, high)
    assert table(ranked_ties=broken, keys=[nothing])["GFPO"].verdict == verdict


def test_a_key_that_would_rank_is_proposed_for_gfpo() -> None:
    found = table(ranking=("reward",), ranked_ties=exactly(0.0))["GFPO"]
    assert found.value == ["reward", "equation_steps"]  # shorter breaks as many ties, and agrees no more than a coin
    rewarded = replace(SITUATION, rewarded=("exact_answer", "equation_steps"))
    assert table(rewarded, ranking=("reward",), ranked_ties=exactly(0.0))["GFPO"].verdict == "no"


@pytest.mark.parametrize(("high", "kept"), [(0.499, ["reward"]), (0.5, ["reward", "equation_steps"])])
def test_a_key_that_prefers_wrong_answers_goes(high: float, kept: list[str]) -> None:
    found = table(keys=[KeyUse("equation_steps", exactly(0.3), Estimate(0.4, 0.3, high))])["GFPO"]
    assert found.value == kept and found.verdict == ("no" if kept == ["reward"] else "yes")


@pytest.mark.parametrize(("high", "value"), [(0.0999, ["reward"]), (0.1, ["reward", "equation_steps"])])
def test_a_reward_without_ties_is_an_order_already(high: float, value: list[str]) -> None:
    assert table(ties=Estimate(0.05, 0.0, high))["GFPO"].value == value


@pytest.mark.parametrize(("steps", "verdict"), [(rules.LONG_RUN - 1, "no"), (rules.LONG_RUN, "yes")])
def test_srpo_is_for_long_runs(steps: int, verdict: str) -> None:
    assert table(replace(SITUATION, reinforcement_steps=steps))["SRPO"].verdict == verdict


@pytest.mark.parametrize(("low", "value"), [(0.05, None), (0.051, 80)])
def test_cut_answers_get_more_room(low: float, value: int | None) -> None:
    assert table(truncated=Estimate(0.1, low, 0.2))["max_tokens"].value == value


@pytest.mark.parametrize(("wrong", "told"), [(0.24, False), (0.25, True)])
def test_groups_without_a_right_answer_are_told_of_where_keys_alone_would_order_them(wrong: float, told: bool) -> None:
    found = table(all_wrong=dict.fromkeys((2, 4, 8, 16), exactly(wrong)))["GFPO"]
    assert ("ties: agreement" in found.reason) == told
