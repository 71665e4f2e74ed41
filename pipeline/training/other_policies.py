"""Frozen policies beside the one that trains: a reference or teachers, which say how probable its completions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradus.pipeline.common.ranks import Ranks
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.training.learner.groups import groups_of
from gradus.pipeline.types import Rollouts


@dataclass(frozen=True)
class OtherPolicies:
    """One frozen policy for all prompts, under the empty name, or one for each task that a stage trains on."""

    by_task: Mapping[str, Policy]

    def logprobs(self, rollouts: Rollouts, temperature: float, token_budget: int, ranks: Ranks) -> Tensor:
        """Log-probabilities of a batch's completions, each by the policy of its prompt's task, without a gradient.

        Shapes: -> float32 [P, K, T], 0 outside the mask. Units: nats, of the temperature-scaled policies.
        """
        rows_of: dict[str, list[int]] = {}
        for row, prompt in enumerate(rollouts.prompts):
            rows_of.setdefault(prompt.task if prompt.task in self.by_task else "", []).append(row)
        found_PKT = torch.zeros(rollouts.tokens_PKT.shape)
        for task, rows in rows_of.items():
            policy = self.by_task[task]
            found_PKT[rows] = batch_logprobs(policy, groups_of(rollouts, rows), temperature, token_budget, ranks)
        return found_PKT
