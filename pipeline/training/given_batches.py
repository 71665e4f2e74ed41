"""Batches of completions that the task gives: demonstrations, or pairs of a chosen and a rejected completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards.scoring import unscored
from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.training.batches import Batches, SamplingCost
from gradus.pipeline.types import Prompt, Rollouts, State


@dataclass
class DemonstrationBatches(Batches):
    """One demonstration of each prompt, written by the task."""

    policy: Policy
    schedule: Schedule
    stage: StageConfig

    def batch(self, step: int) -> Rollouts:
        """Tokenise what the task gives of the scheduled prompts."""
        self.schedule.begin(step)
        rollouts = self.given(self.schedule.take(self.stage.prompts_per_step))
        self.cost = SamplingCost.of([rollouts])
        return rollouts

    def given(self, prompts: list[Prompt]) -> Rollouts:
        """The completions of these prompts."""
        return unscored(written(self.policy, prompts, [[prompt.demonstration or ""] for prompt in prompts]))

    def state(self) -> State:
        return self.schedule.state()

    def restore(self, state: State, step: int) -> None:
        self.schedule.restore(state)


@dataclass
class PairBatches(DemonstrationBatches):
    """Two completions of each prompt: the chosen one, whose reward is 1, and the rejected one, whose reward is 0.

    Nobody sampled them, so that the policy that the batch begins with counts as the one that did.
    """

    temperature: float = 1.0
    ranks: Ranks = ALONE

    def given(self, prompts: list[Prompt]) -> Rollouts:
        """The pairs of these prompts."""
        pairs = written(
            self.policy, prompts, [[prompt.demonstration or "", prompt.rejected or ""] for prompt in prompts]
        )
        logprobs = batch_logprobs(self.policy, pairs, self.temperature, self.stage.token_budget, self.ranks)
        rewards_PK = torch.tensor([[1.0, 0.0]]).repeat(len(prompts), 1)
        return replace(unscored(pairs), rewards_PK=rewards_PK, correct_PK=rewards_PK > 0, rollout_logprobs_PKT=logprobs)


def written(policy: Policy, prompts: list[Prompt], texts: Sequence[list[str]]) -> Rollouts:
    """Rollouts [P, K] of K given texts for each prompt; their sampling log-probability counts as 0."""
    completions = [[policy.encode_completion(text) for text in own] for own in texts]
    lengths = torch.tensor([[len(tokens) for tokens in own] for own in completions])
    longest, pad = int(lengths.max()), policy.template.pad_id
    tokens_PKT = torch.tensor([[tokens + [pad] * (longest - len(tokens)) for tokens in own] for own in completions])
    return Rollouts(
        prompts=prompts,
        prompt_tokens=[policy.encode_prompt(prompt) for prompt in prompts],
        tokens_PKT=tokens_PKT,
        mask_PKT=torch.arange(longest) < lengths[..., None],
        rollout_logprobs_PKT=torch.zeros(tokens_PKT.shape),
        truncated_PK=torch.zeros(tokens_PKT.shape[:2], dtype=torch.bool),
        texts=[list(own) for own in texts],
    )
