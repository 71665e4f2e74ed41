"""Completions that could not be scored: they get no weight and count in no statistic, and rounding is no preference."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradus.pipeline.advantages import all_equal, best_kept, centre, standardise
from gradus.pipeline.rewards.ranking import order_PKK
from gradus.pipeline.stage import Signals
from gradus.pipeline.training.learner.coefficients import likelihood_coefficients
from gradus.pipeline.training.learner.critics import PromptCritic
from gradus.pipeline.training.metrics import finite, rollout_metrics
from gradus.pipeline.training.signals import difficulty
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

Values = list[float]
P, K = 40, 6


def centred(rewards: Values) -> Values:
    mean = sum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def standardised(rewards: Values) -> Values:
    if len(rewards) < 2 or max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(r - mean) / deviation for r in rewards]


def dapo(rewards: Values, lengths: list[int], value: float, reference: Values) -> Values:
    return centred(rewards)


def dapo_paper(rewards: Values, lengths: list[int], value: float, reference: Values) -> Values:
    # max_tokens 10 and overlong 0.2: a buffer of 2 tokens, over which a reward falls by up to 1
    return standardised([r - min(1.0, max(0.0, (n - 8) / 2)) for r, n in zip(rewards, lengths, strict=True)])


def vapo(rewards: Values, lengths: list[int], value: float, reference: Values) -> Values:
    mean = sum(rewards) / len(rewards)
    return [r - 0.25 * mean - 0.75 * value for r in rewards]


def gfpo_kept(rewards: Values, lengths: list[int], value: float, reference: Values) -> Values:
    last = sorted(lengths)[min(3, len(lengths)) - 1]
    kept = [index for index, length in enumerate(lengths) if length <= last]
    weights = dict(zip(kept, standardised([rewards[index] for index in kept]), strict=True))
    return [weights.get(index, 0.0) for index in range(len(rewards))]


def srpo_gap(rewards: Values, lengths: list[int], value: float, reference: Values) -> Values:
    return [r - sum(reference) / len(reference) for r in rewards] if reference else [0.0] * len(rewards)


LITERAL: dict[str, tuple[str, dict[str, Any], Any]] = {
    "dapo": ("dapo", {}, dapo),
    "dapo, paper": ("dapo", {"advantage": "standardised", "overlong": 0.2}, dapo_paper),
    "vapo": ("vapo", {"alpha": 0.25}, vapo),
    "gfpo, kept": ("gfpo", {"advantage": "kept", "keep": 3, "group_size": K}, gfpo_kept),
    "srpo": ("srpo", {"baseline": "mean"}, srpo_gap),
}


def drawn(seed: int) -> tuple[Signals, Tensor]:
    """Signals with failures at random, whole groups included; what a failed completion holds is nonsense."""
    generator = torch.Generator().manual_seed(seed)

    def chance(share: float) -> Tensor:
        return torch.rand(P, K, generator=generator) < share

    valid, reference_valid = chance(0.7), chance(0.7)
    valid[0], valid[1, 1:], valid[1, 0], reference_valid[2] = False, False, True, False
    nonsense = torch.tensor([1e6, -7.0, 0.5]).repeat(P, K // 3)
    rewards, reference = (torch.randint(0, 4, (2, P, K), generator=generator) / 10).unbind()
    signals = Signals(
        rewards_PK=torch.where(valid, rewards, nonsense),
        lengths_PK=torch.randint(1, 11, (P, K), generator=generator),
        valid_PK=valid,
        longest=10,
        values_P=torch.rand(P, generator=generator),
        reference_rewards_PK=torch.where(reference_valid, reference, nonsense),
        reference_valid_PK=reference_valid,
    )
    return signals, valid


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LITERAL)
def test_weights_are_those_of_a_group_without_its_failed_completions(name: str, seed: int) -> None:
    stage, options, literal = LITERAL[name]
    signals, valid = drawn(seed)
    algorithm = discover()[stage]
    found = algorithm.weigh(signals, algorithm.config(stage=stage, steps=1, **options))
    assert signals.values_P is not None and signals.reference_rewards_PK is not None
    for p in range(P):
        mine = valid[p].nonzero()[:, 0].tolist()
        rewards = [round(float(signals.rewards_PK[p, k]), 6) for k in mine]
        reference_valid = signals.reference_valid_PK[p] if signals.reference_valid_PK is not None else valid[p]
        reference = [float(r) for r in signals.reference_rewards_PK[p][reference_valid].double()]
        if not mine:
            continue
        lengths = [int(signals.lengths_PK[p, k]) for k in mine]
        wanted = literal(rewards, lengths, float(signals.values_P[p]), reference)
        assert found[p, mine].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5), f"group {p}"


def test_srpo_compares_pairs_only_where_the_reference_was_scored() -> None:
    srpo = discover()["srpo"]
    valid = torch.tensor([[True, False]])
    signals = Signals(
        torch.tensor([[1.0, 1.0]]), torch.ones(1, 2), reference_rewards_PK=torch.tensor([[0.25, 9.0]]),
        reference_valid_PK=valid, log_ratio_PK=torch.ones(1, 2),
    )  # fmt: skip
    options = {"stage": "srpo", "steps": 1, "baseline": "paired", "advantage": "combined", "beta": 0.5}
    assert srpo.weigh(signals, srpo.config(**options)).tolist() == [[0.25, 0.0]]  # 1 - 0.25 - 0.5 * 1; none


@pytest.mark.parametrize("value", [0.1, 0.3, 0.9, 1 / 3])
@pytest.mark.parametrize("size", range(3, 17))
def test_rounding_of_equal_rewards_is_no_preference(value: float, size: int) -> None:
    """A mean of equal float32 numbers is often an ulp off, and totals of the same value may be."""
    rewards = torch.full((1, size), value)
    rewards[0, -1] = torch.nextafter(rewards[0, 0], torch.tensor(1.0))
    assert all_equal(rewards).tolist() == [[True]]
    for weights in (centre(rewards), standardise(rewards)):
        assert not weights.any()
    assert best_kept(rewards, torch.tensor([1])).all(), "all are tied with the best"
    lengths, valid = torch.ones(1, size), torch.ones(1, size, dtype=torch.bool)
    assert not order_PKK(["reward"], rewards, {}, lengths, valid).any()
    rewards[0, -1] = value * 1.001
    assert standardise(rewards).any() and order_PKK(["reward"], rewards, {}, lengths, valid).any()


def scored(rewards: list[list[float]], valid: list[list[bool]], correct: list[list[bool]] | None = None) -> Rollouts:
    shape = (len(rewards), len(rewards[0]))
    mask, known = torch.ones(*shape, 2, dtype=torch.bool), torch.tensor(valid)
    zeros = torch.zeros(*shape, 2)
    return Rollouts(
        prompts=[Prompt(str(p), "q", "a") for p in range(shape[0])], prompt_tokens=[[1]] * shape[0],
        tokens_PKT=zeros.long(), mask_PKT=mask, rollout_logprobs_PKT=zeros, truncated_PK=torch.zeros(shape).bool(),
        texts=[["x"] * shape[1]] * shape[0], rewards_PK=torch.tensor(rewards), valid_PK=known,
        components={"r": torch.tensor(rewards).masked_fill(~known, math.nan)},
        correct_PK=torch.tensor(correct) if correct else known,
    )  # fmt: skip


def test_metrics_count_what_was_scored_alone() -> None:
    batch = scored(
        [[1.0, 0.0, 0.5], [0.4, 0.4, 7.0], [5.0, 6.0, 7.0]], [[True, True, False], [True, True, False], [False] * 3]
    )
    found = rollout_metrics(batch)
    assert found["reward/mean"] == pytest.approx((1 + 0 + 0.4 + 0.4) / 4)
    assert found["reward/std"] == pytest.approx(statistics.pstdev([1, 0, 0.4, 0.4]), rel=1e-6)
    assert found["reward/invalid_share"] == pytest.approx(5 / 9)
    assert found["group/uniform_share"] == 0.5, "of the two groups with a score one is uniform"


def test_a_batch_that_nobody_could_score_is_not_worth_zero() -> None:
    found = finite(rollout_metrics(scored([[0.0, 0.0]], [[False, False]])))
    assert found["reward/invalid_share"] == 1.0
    assert not {"reward/mean", "reward/std", "group/uniform_share", "reward/r"} & found.keys()


def test_a_prompt_critic_learns_from_valid_rewards_alone() -> None:
    states, rewards = torch.ones(3, 2), torch.tensor([[0.9, -99.0], [-99.0, -99.0], [0.5, 0.7]])
    valid = torch.tensor([[True, False], [False, False], [True, True]])
    critic = PromptCritic(2, lr=0.1)
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    assert critic.predict(states, rewards, nothing).tolist() == [0.0] * 3 and critic.fresh
    assert critic.train(states, rewards, nothing) == {} and not critic.head.weight.any()
    assert critic.predict(states, rewards, valid).tolist() == pytest.approx([0.7] * 3)  # (0.9 + 0.5 + 0.7) / 3
    # squared errors of 0.7 against 0.9, 0.5, 0.7: (0.04 + 0.04 + 0) / 3
    assert critic.train(states, rewards, valid)["critic/loss"] == pytest.approx(0.08 / 3, rel=1e-5)


def test_difficulty_ranks_groups_by_valid_rewards_and_leaves_out_the_others() -> None:
    rewards = torch.tensor([[1.0, -9.0], [0.5, 0.5], [-9.0, -9.0]])
    valid = torch.tensor([[True, False], [True, True], [False, False]])
    # means 1.0 and 0.5: above the first none, below it one -> (0 + 2 - 1) / 4; above the second one -> (1 + 2 - 0) / 4
    assert difficulty(rewards, valid, torch.tensor([1.0, 0.5])).tolist() == [0.25, 0.75, 0.5]
    assert difficulty(rewards[2:], valid[2:], torch.zeros(0)).tolist() == [0.5], "a first group that nobody could score"


def test_the_likelihood_loss_takes_no_completion_that_could_not_be_scored() -> None:
    batch = scored([[1.0, 1.0]], [[True, False]], correct=[[True, True]])
    # one completion of two tokens is left; objective = sum / completions, so each token has 0.1 * 2 / 2
    found = likelihood_coefficients(batch, 0.1)
    torch.testing.assert_close(found, torch.tensor([[[0.1, 0.1], [0.0, 0.0]]]))
    unknown = replace(batch, valid_PK=None)
    torch.testing.assert_close(likelihood_coefficients(unknown, 0.1), torch.full((1, 2, 2), 0.05))
