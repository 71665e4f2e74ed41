"""Groups that are divided and joined, and groups that are refilled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scored_batches import scored, stream_of
from small_pipeline import pipeline

from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.training.batches import SampledBatches
from gradus.pipeline.training.learner.groups import groups_of, joined, uniform_groups
from gradus.pipeline.types import Prompt

GRADED = [{"reward": "length", "params": {"max": 4, "falloff": 8}}]


def test_groups_that_are_cut_and_joined_are_the_batch_again(policy: Policy, prompts: list[Prompt]) -> None:
    from gradus.pipeline.config import SamplingConfig

    whole = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    again = joined([groups_of(whole, [0, 2]), groups_of(whole, [3, 1])])
    assert [prompt.id for prompt in again.prompts] == ["p0", "p2", "p3", "p1"]
    back = groups_of(again, [0, 3, 1, 2])
    assert torch.equal(back.tokens_PKT, whole.tokens_PKT) and torch.equal(back.mask_PKT, whole.mask_PKT)
    assert torch.equal(back.rollout_logprobs_PKT, whole.rollout_logprobs_PKT) and back.texts == whole.texts


def test_joined_batches_of_other_lengths_are_padded() -> None:
    prompt = Prompt("a", "q", "1")
    short = scored([prompt], [[True, False]])
    long = replace(short, tokens_PKT=torch.ones(1, 2, 5, dtype=torch.long), mask_PKT=torch.ones(1, 2, 5).bool())
    long = replace(long, rollout_logprobs_PKT=torch.zeros(1, 2, 5))
    both = joined([short, long])
    assert both.mask_PKT.sum(-1).tolist() == [[2, 2], [5, 5]]


def test_uniform_groups_are_told_by_correctness_and_not_by_reward() -> None:
    prompts = [Prompt(str(n), "q", "1") for n in range(4)]
    rollouts = scored(
        prompts,
        [[True, True], [False, False], [True, False], [True, False]],
        [[True, True], [True, True], [True, True], [True, False]],
    )
    rollouts = replace(rollouts, rewards_PK=torch.rand(4, 2))
    assert uniform_groups(rollouts).tolist() == [True, True, False, True], "what could not be scored counts as neither"


@pytest.fixture
def config() -> PipelineConfig:
    stages = [{"stage": "dapo", "steps": 3, "prompts_per_step": 4, "group_size": 3}]
    return pipeline(stages, rewards=GRADED, evaluation={"threshold": 0.9})


def groups(config: PipelineConfig, policy: Policy, refills: int) -> SampledBatches:
    source = SampledBatches(
        policy, Schedule(stream_of(50)), RewardSuite(config.rewards), config, config.stages[0], refills=refills
    )
    return source


def test_refilling_replaces_uniform_groups_and_counts_what_it_cost(config: PipelineConfig, policy: Policy) -> None:
    plain = groups(config, policy, refills=0).batch(1)
    assert uniform_groups(plain).any() and not uniform_groups(plain).all(), "or the test shows nothing"
    source = groups(config, policy, refills=9)
    batch = source.batch(1)
    assert len(batch.prompts) == 4 and not uniform_groups(batch).any()
    mixed = [prompt.id for prompt, uniform in zip(plain.prompts, uniform_groups(plain), strict=True) if not uniform]
    assert [prompt.id for prompt in batch.prompts][: len(mixed)] == mixed, "those of the first round come first"
    rounds = int(source.metrics["refill/rounds"])
    assert 1 <= rounds <= 9 and source.cost.rollouts == 12 * (rounds + 1)
    assert source.cost.tokens > int(batch.mask_PKT.sum())
    assert source.metrics["refill/dropped_groups"] == 4 * (rounds + 1) - 4
    assert source.metrics["refill/rollouts_per_kept"] == rounds + 1
    assert source.metrics["group/uniform_share"] > 0, "told of all that was drawn"
    assert source.state() == {"place": 4 * (rounds + 1)}
    following = source.batch(2)
    assert not {p.id for p in following.prompts} & {p.id for p in batch.prompts}, "the schedule has moved on"


def test_refilling_ends_where_nothing_can_be_compared(config: PipelineConfig, policy: Policy) -> None:
    hopeless = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"threshold": 2.0})})
    source = groups(hopeless, policy, refills=2)
    batch = source.batch(1)
    assert source.cost.rollouts == 3 * 12 and source.metrics["refill/rounds"] == 2
    assert len(batch.prompts) == 1, "a step goes by with one group"


def test_a_prompt_that_comes_twice_in_a_step_is_drawn_anew(config: PipelineConfig, policy: Policy) -> None:
    source = groups(config, policy, refills=1)
    prompts = source.schedule.take(2)
    one, two = source.of(prompts, 1), source.of(prompts, 1, ":refill-1")
    assert one.texts != two.texts
