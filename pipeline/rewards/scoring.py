"""From scores to rewards: what the reward suite found for a batch, as tensors."""

from __future__ import annotations

import torch

from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.rewards import Scores
from gradus.pipeline.types import Rollouts


def rewarded(rollouts: Rollouts, scores: Scores, pipeline: PipelineConfig) -> Rollouts:
    """The rollouts with their rewards.

    A completion on which a rewarded component failed is not a zero: it is marked invalid, so that it gets no weight,
    and holds the mean of its group's valid rewards, so that it does not shift the others' baseline. A component of
    weight zero that fails spoils nothing but the rankings that use it.
    """
    components = {label: torch.tensor(values) for label, values in scores.components.items()}
    total_PK = torch.zeros(rollouts.truncated_PK.shape)
    valid_PK = torch.ones_like(rollouts.truncated_PK)
    for reward in pipeline.rewards:
        if reward.weight != 0:
            total_PK = total_PK + reward.weight * components[reward.label]
            valid_PK &= ~components[reward.label].isnan()
    counted_P1 = valid_PK.sum(-1, keepdim=True)
    mean_P1 = torch.where(valid_PK, total_PK, 0.0).sum(-1, keepdim=True) / counted_P1.clamp(min=1)
    rewards_PK = torch.where(valid_PK, total_PK, mean_P1)
    correct_PK = components[pipeline.accuracy_reward] >= pipeline.evaluation.threshold
    return rollouts.with_rewards(rewards_PK=rewards_PK, components=components, valid_PK=valid_PK, correct_PK=correct_PK)


def unscored(rollouts: Rollouts) -> Rollouts:
    """Rollouts that no reward is asked for, such as demonstrations: every one valid and correct, every reward zero."""
    zeros_PK, true_PK = torch.zeros(rollouts.truncated_PK.shape), torch.ones_like(rollouts.truncated_PK)
    return rollouts.with_rewards(rewards_PK=zeros_PK, valid_PK=true_PK, correct_PK=true_PK)
