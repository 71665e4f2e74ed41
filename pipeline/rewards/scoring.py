"""From scores to rewards: what the reward suite found for a batch, as tensors."""

from __future__ import annotations

import torch

from gradus.pipeline.advantages import group_mean
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.rewards import Scores
from gradus.pipeline.types import Rollouts


def rewarded(rollouts: Rollouts, scores: Scores, pipeline: PipelineConfig) -> Rollouts:
    """The rollouts with their rewards.

    A completion on which a rewarded component failed is not a zero: it is marked invalid, so that it gets no weight
    and takes no part in statistics. Its reward, which has no meaning, is the mean of its group's valid ones. A
    component of weight zero that fails spoils nothing but the rankings that use it. Sums are taken in float64, so that
    equal totals are equal float32 numbers, whichever components they are made of.
    """
    components = {label: torch.tensor(values) for label, values in scores.components.items()}
    total_PK = torch.zeros(rollouts.truncated_PK.shape, dtype=torch.float64)
    valid_PK = torch.ones_like(rollouts.truncated_PK)
    for reward in pipeline.rewards:
        if reward.weight != 0:
            total_PK += reward.weight * torch.tensor(scores.components[reward.label], dtype=torch.float64)
            valid_PK &= ~components[reward.label].isnan()
    rewards_PK = torch.where(valid_PK, total_PK, group_mean(total_PK, valid_PK)).float()
    is_correct, deciding = pipeline.evaluation.is_correct, scores.components[pipeline.accuracy_reward]
    correct_PK = torch.tensor([[is_correct(score) for score in group] for group in deciding])
    return rollouts.with_rewards(rewards_PK=rewards_PK, components=components, valid_PK=valid_PK, correct_PK=correct_PK)


def unscored(rollouts: Rollouts) -> Rollouts:
    """Rollouts that no reward is asked for, such as demonstrations: every one valid and correct, every reward zero."""
    zeros_PK, true_PK = torch.zeros(rollouts.truncated_PK.shape), torch.ones_like(rollouts.truncated_PK)
    return rollouts.with_rewards(rewards_PK=zeros_PK, valid_PK=true_PK, correct_PK=true_PK)
