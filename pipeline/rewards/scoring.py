"""From scores to rewards: what the reward suite found for a batch, as tensors."""

from __future__ import annotations

import torch

from gradus.pipeline.advantages import group_mean
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.rewards import Scores
from gradus.pipeline.types import Rollouts


def rewarded(rollouts: Rollouts, scores: Scores, pipeline: PipelineConfig) -> Rollouts:
    """The rollouts with their rewards, each prompt's as its task says.

    A completion on which a rewarded component failed is not a zero: it is marked invalid, so that it gets no weight
    and takes no part in statistics. Its reward, which has no meaning, is the mean of its group's valid ones. A
    component of weight zero that fails spoils nothing but the rankings that use it. Sums are taken in float64, so that
    equal totals are equal float32 numbers, whichever components they are made of.
    """
    components = {label: torch.tensor(values) for label, values in scores.components.items()}
    total_PK = torch.zeros(rollouts.truncated_PK.shape, dtype=torch.float64)
    valid_PK = torch.ones_like(rollouts.truncated_PK)
    correct_PK = torch.zeros_like(rollouts.truncated_PK)
    for task in dict.fromkeys(prompt.task for prompt in rollouts.prompts):
        rows = [row for row, prompt in enumerate(rollouts.prompts) if prompt.task == task]
        judgement = pipeline.judgement(task)
        for reward in judgement.rewards:
            if reward.weight != 0:
                values = torch.tensor([scores.components[reward.label][row] for row in rows], dtype=torch.float64)
                total_PK[rows] += reward.weight * values
                valid_PK[rows] &= ~components[reward.label][rows].isnan()
        is_correct, deciding = judgement.evaluation.is_correct, scores.components[judgement.accuracy_reward]
        correct_PK[rows] = torch.tensor([[is_correct(score) for score in deciding[row]] for row in rows])
    rewards_PK = torch.where(valid_PK, total_PK, group_mean(total_PK, valid_PK)).float()
    return rollouts.with_rewards(rewards_PK=rewards_PK, components=components, valid_PK=valid_PK, correct_PK=correct_PK)


def unscored(rollouts: Rollouts) -> Rollouts:
    """Rollouts that no reward is asked for, such as demonstrations: every one valid and correct, every reward zero."""
    zeros_PK, true_PK = torch.zeros(rollouts.truncated_PK.shape), torch.ones_like(rollouts.truncated_PK)
    return rollouts.with_rewards(rewards_PK=zeros_PK, valid_PK=true_PK, correct_PK=true_PK)
