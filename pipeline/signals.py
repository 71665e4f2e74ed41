"""Provides what a stage declared it needs: orders, scores, a reference policy, a critic; never asks who needs it."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor

from pipeline.config import StageConfig
from pipeline.critic import PromptCritic
from pipeline.learner import batch_logprobs
from pipeline.losses import spread_PK
from pipeline.policy import Policy, copy_parameters, parameters
from pipeline.rewards.ranking import order_PKK
from pipeline.sources import SampledGroups
from pipeline.stage import Needs, Signals
from pipeline.training_state import State
from pipeline.types import Rollouts


def frozen_copy(policy: Policy) -> Policy:
    """The policy as it is now, apart from the one that trains; costs its weights a second time in memory."""
    return Policy(copy.deepcopy(policy.model).requires_grad_(False), policy.tokenizer, policy.template)


class SignalProvider:
    """Holds a stage's reference policy and critic and fills the signals of each batch."""

    def __init__(
        self,
        needs: Needs,
        config: StageConfig,
        policy: Policy,
        temperature: float,
        groups_of: Callable[[Policy], SampledGroups],
    ):
        self.needs, self.config, self.policy, self.temperature = needs, config, policy, temperature
        self.reference = frozen_copy(policy) if needs.reference else None
        self.refreshed = False
        self.reference_groups = groups_of(self.reference) if self.reference and needs.reference_rewards else None
        width = policy.width
        self.critic = PromptCritic(width, needs.critic_lr) if needs.critic_lr is not None else None
        self.metrics: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Refresh the reference where the stage's declared interval has passed."""
        every = self.needs.refresh_reference
        if self.reference is not None and every and step > 1 and (step - 1) % every == 0:
            copy_parameters(parameters(self.policy), self.reference)
            self.refreshed = True

    def state(self) -> State:
        """The critic, and the reference policy once it is another than the stage's start."""
        state: State = {"critic": self.critic.state() if self.critic is not None else None}
        if self.reference is not None and self.refreshed:
            state["reference"] = parameters(self.reference)
        return state

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.take_critic(state)
        if self.reference is not None and "reference" in state:
            copy_parameters(state["reference"], self.reference)
            self.refreshed = True

    def take_critic(self, state: State) -> None:
        """Take over the critic alone, as from another stage."""
        if self.critic is not None:
            self.critic.restore(state["critic"])

    def of(self, rollouts: Rollouts, step: int) -> Callable[[int], Signals]:
        """The signals of a batch, as a function of the update's number: what depends on the policy is taken anew."""
        assert rollouts.rewards_PK is not None and rollouts.valid_PK is not None
        self.metrics = {}
        order = values = reference_rewards = None
        if self.needs.ranking:
            order = order_PKK(
                list(self.needs.ranking),
                rollouts.rewards_PK,
                rollouts.components,
                rollouts.lengths_PK,
                rollouts.valid_PK,
            )
        if self.critic is not None:
            assert rollouts.prompt_states_PD is not None
            states = rollouts.prompt_states_PD.cpu()
            values = self.critic.predict(states, rollouts.rewards_PK)
            self.metrics |= {"critic/value_mean": float(values.mean())}
            self.metrics |= self.critic.train(states, rollouts.rewards_PK)
        if self.reference_groups is not None:
            reference_rewards = self.reference_groups.batch(step).rewards_PK
            assert reference_rewards is not None
            self.metrics |= {"reference/reward_mean": float(reference_rewards.mean())}
            self.metrics |= {f"{name}_reference": value for name, value in self.reference_groups.metrics.items()}
        reference_logprobs = self._logprobs(self.reference, rollouts) if self.needs.log_ratio else None

        def signals(update: int) -> Signals:
            scores = log_ratio = None
            if self.needs.policy_scores or self.needs.log_ratio:
                # Before the first update the record of a sampler that used these weights is the policy's own.
                fresh = update == 0 and rollouts.staleness == 0
                logprobs = rollouts.rollout_logprobs_PKT if fresh else self._logprobs(self.policy, rollouts)
                scores = logprobs.sum(-1) * spread_PK(rollouts.mask_PKT, self.config.score)
                if reference_logprobs is not None:
                    log_ratio = (logprobs - reference_logprobs).sum(-1)
            return Signals(
                rewards_PK=rollouts.rewards_PK,
                lengths_PK=rollouts.lengths_PK,
                order_PKK=order,
                policy_scores_PK=scores,
                log_ratio_PK=log_ratio,
                reference_rewards_PK=reference_rewards,
                values_P=values,
            )

        return signals

    def _logprobs(self, policy: Policy | None, rollouts: Rollouts) -> Tensor:
        assert policy is not None
        return batch_logprobs(policy, rollouts, self.temperature, self.config.token_budget)
