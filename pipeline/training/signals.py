"""The signals that a stage declares it needs: rankings, scores, a reference policy, a critic. It names no stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.advantages import group_mean, valid
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import SamplingConfig, StageConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy, copy_parameters, frozen_copy, parameters
from gradus.pipeline.rewards.ranking import order_PKK
from gradus.pipeline.stage import Needs, Signals
from gradus.pipeline.training.batches import SampledBatches, SamplingCost
from gradus.pipeline.training.learner.critics import PromptCritic, TokenCritic
from gradus.pipeline.training.learner.groups import groups_of
from gradus.pipeline.training.learner.losses import spread_PK
from gradus.pipeline.training.other_policies import OtherPolicies
from gradus.pipeline.types import Rollouts, State


def difficulty(rewards_PK: Tensor, valid_PK: Tensor | None, means: Tensor) -> Tensor:
    """The difficulty of prompts: the share of ``means``, the mean rewards of all groups so far with these groups among
    them, that is higher than their own; equal ones count half.

    Shapes: [P, K], bool [P, K], [any] -> float32 [P]. Edge: a group without a valid reward gets 0.5.
    Source: the running quantiles of GFPO's adaptive difficulty (arXiv 2508.09726), kept exactly.
    """
    valid_PK = valid(rewards_PK, valid_PK)
    means_P, known_P = group_mean(rewards_PK, valid_PK)[:, 0], valid_PK.any(-1)
    ordered = means.sort().values
    if not len(ordered):
        return torch.full(means_P.shape, 0.5)
    above = len(ordered) - torch.searchsorted(ordered, means_P, right=True)
    below = torch.searchsorted(ordered, means_P)
    return ((above + len(ordered) - below) / (2 * len(ordered))).where(known_P, 0.5)


Observe = Callable[[Signals, Mapping[str, float], Any], Mapping[str, float]]
"""(signals of a batch, the state before it, the stage's options) -> the state after it."""


class SignalProvider:
    """Holds a stage's reference policy, critic and history, and fills the signals of each batch."""

    def __init__(
        self,
        needs: Needs,
        config: StageConfig,
        policy: Policy,
        sampling: SamplingConfig,
        groups_from: Callable[[Policy], SampledBatches],
        ranks: Ranks = ALONE,
        remembered: Callable[[int], Any] | None = None,
        others: Mapping[str, OtherPolicies] | None = None,
    ):
        """``remembered``: the mean rewards of all groups up to a step, from the stage's memory of prompts; ``others``:
        option -> the policies that it chooses."""
        self.needs, self.config, self.policy, self.ranks = needs, config, policy, ranks
        self.temperature, self.longest = sampling.temperature, sampling.max_tokens
        chosen, self.teachers = (others or {}).get("reference"), (others or {}).get("teacher")
        wanted = needs.reference or needs.reference_logprobs or bool(config.kl)
        self.reference = frozen_copy(policy) if wanted and chosen is None else None
        """The copy of this policy that is the reference, unless another one is chosen."""
        self.references = chosen or (OtherPolicies({"": self.reference}) if self.reference else None)
        self.refreshed = False
        sampled = self.references.by_task[""] if self.references and needs.reference_rewards else None
        self.reference_groups = groups_from(sampled) if sampled is not None else None
        kind = needs.critic.kind if needs.critic is not None else None
        self.prompt_critic = PromptCritic(policy.width, needs.critic.lr) if needs.critic and kind == "prompt" else None
        self.token_critic = TokenCritic(policy, needs.critic, config) if needs.critic and kind == "token" else None
        self.remembered = remembered if needs.difficulty else None
        self.observed: dict[str, float] = {}
        """What the stage's own function has made of all batches so far."""
        self.earlier_means = torch.zeros(0)
        """Mean rewards of the groups that an earlier version met, which kept them in its checkpoints."""
        self.metrics: dict[str, float] = {}
        self.cost = SamplingCost()
        """The cost of what was sampled for the signals of the last batch."""

    def begin(self, step: int) -> None:
        """Refresh the reference where the stage's declared interval has passed."""
        if self.reference is not None and step > 1 and self._at_reference(step):
            copy_parameters(parameters(self.policy), self.reference)
            self.refreshed = True

    def _at_reference(self, step: int) -> bool:
        """Whether the policy that a step begins with is the reference itself."""
        if self.reference is None:
            return False
        every = self.needs.refresh_reference
        return step == 1 or (every > 0 and (step - 1) % every == 0)

    def state(self) -> State:
        """The critic, the history, and the reference policy once it differs from the stage's start."""
        critic = self.prompt_critic or self.token_critic
        state: State = {"critic": critic.state() if critic is not None else None}
        if self.reference is not None and self.refreshed:
            state["reference"] = parameters(self.reference)
        if len(self.earlier_means):
            state["difficulty"] = self.earlier_means
        if self.observed:
            state["observed"] = self.observed
        return state

    def restore(self, state: State) -> None:
        """Continue from :meth:`state`."""
        self.take_critic(state)
        if self.reference is not None and "reference" in state:
            copy_parameters(state["reference"], self.reference)
            self.refreshed = True
        self.earlier_means = state.get("difficulty", self.earlier_means)
        self.observed = state.get("observed", self.observed)

    def take_critic(self, state: State) -> None:
        """Take over the critic alone, as from another stage."""
        if (critic := self.prompt_critic or self.token_critic) is not None:
            critic.restore(state["critic"])

    def prepared(self, rollouts: Rollouts, step: int) -> Rollouts:
        """The batch with what the reference and the teachers say of its completions, where the stage asks for it."""
        found, needs = dict[str, Any](), self.needs
        options = (self.temperature, self.config.token_budget, self.ranks)
        if needs.reference_reads(self.config):
            assert self.references is not None
            # Two forward passes of the same weights differ by rounding, which AdamW would scale up to a whole step.
            equal = rollouts.staleness == 0 and self._at_reference(step)
            known = rollouts.rollout_logprobs_PKT
            found["reference_logprobs_PKT"] = known if equal else self.references.logprobs(rollouts, *options)
        if needs.teacher_logprobs:
            assert self.teachers is not None
            found["teacher_logprobs_PKT"] = self.teachers.logprobs(rollouts, *options)
        return replace(rollouts, **found)

    def of(self, rollouts: Rollouts, step: int, observe: Observe | None = None) -> Callable[[int, list[int]], Signals]:
        """The signals of a prepared batch, as a function of the number of an update and of some groups.

        What depends on the policy is computed again at each update. ``observe``: the stage's own function of the whole
        batch and of what it made of those before.
        """
        self.metrics, self.cost = {}, SamplingCost()
        further = [key for key in self.needs.ranking if key != "reward"]
        fixed = replace(
            _recorded(rollouts, self.needs, self.config, self.longest),
            order_PKK=_order(rollouts, self.needs.ranking) if self.needs.ranking else None,
            quality_PKK=_order(rollouts, further) if further and "reward" in self.needs.ranking else None,
            difficulty_P=self._difficulty(rollouts, step) if self.remembered is not None else None,
            **self._reference_rewards(rollouts, step),
            **self._values(rollouts),
        )
        if observe is not None:
            self.observed = dict(observe(fixed, self.observed, self.config))
            fixed = replace(fixed, state=self.observed)
            self.metrics |= {f"state/{name}": value for name, value in self.observed.items()}
        needs = self.needs

        def signals(update: int, groups: list[int]) -> Signals:
            part = _part(fixed, groups)
            if not (needs.policy_scores or needs.policy_logprobs or needs.log_ratio):
                return part
            chosen = groups_of(rollouts, groups)
            # Before the first update the record of a sampler that used these weights is the policy's own.
            fresh = update == 0 and rollouts.staleness == 0
            logprobs = chosen.rollout_logprobs_PKT if fresh else self._logprobs(self.policy, chosen)
            scores = logprobs.sum(-1) * spread_PK(chosen.mask_PKT, self.config.score)
            part = replace(part, policy_scores_PK=scores)
            if needs.policy_logprobs:
                part = replace(part, policy_logprobs_PKT=logprobs)
            if not needs.log_ratio:
                return part
            assert chosen.reference_logprobs_PKT is not None
            return replace(part, log_ratio_PK=(logprobs - chosen.reference_logprobs_PKT).sum(-1))

        return signals

    def _values(self, rollouts: Rollouts) -> dict[str, Any]:
        """The critic's values; they are taken before this batch trains the critic."""
        assert rollouts.rewards_PK is not None and rollouts.valid_PK is not None
        values: dict[str, Any] = {}
        if self.prompt_critic is not None:
            assert rollouts.prompt_states_PD is not None
            states = rollouts.prompt_states_PD.cpu()
            rewards = (rollouts.rewards_PK, rollouts.valid_PK)
            values["values_P"] = found = self.prompt_critic.predict(states, *rewards)
            self.metrics |= {"critic/value_mean": float(found.mean())}
            self.metrics |= self.prompt_critic.train(states, *rewards)
        if self.token_critic is not None:
            values["values_PKT"] = found = self.token_critic.predict(rollouts)
            self.metrics |= {"critic/value_mean": float(found[rollouts.mask_PKT].mean())}
            self.metrics |= self.token_critic.train(rollouts, found)
        return values

    def _difficulty(self, rollouts: Rollouts, step: int) -> Tensor:
        """How difficult the prompts are, among all groups of the stage up to here, those that refills drop included."""
        assert self.remembered is not None and rollouts.rewards_PK is not None
        means = torch.cat([self.earlier_means, torch.tensor(self.remembered(step))])
        return difficulty(rollouts.rewards_PK, rollouts.valid_PK, means)

    def _reference_rewards(self, rollouts: Rollouts, step: int) -> dict[str, Any]:
        """The rewards of the reference policy on the same prompts, where the stage needs them."""
        if self.reference_groups is None:
            return {}
        found = self.reference_groups.of(rollouts.prompts, step)
        assert found.rewards_PK is not None and found.valid_PK is not None
        self.cost = self.reference_groups.cost
        self.metrics |= {"reference/reward_mean": float(found.rewards_PK[found.valid_PK].mean())}
        self.metrics |= {f"{name}_reference": value for name, value in self.reference_groups.metrics.items()}
        return {"reference_rewards_PK": found.rewards_PK, "reference_valid_PK": found.valid_PK}

    def _logprobs(self, policy: Policy, rollouts: Rollouts) -> Tensor:
        return batch_logprobs(policy, rollouts, self.temperature, self.config.token_budget, self.ranks)


def _part(signals: Signals, groups: list[int]) -> Signals:
    """The signals of some groups."""
    values = {each.name: getattr(signals, each.name) for each in fields(signals)}
    chosen: dict[str, Any] = {name: value[groups] for name, value in values.items() if isinstance(value, Tensor)}
    chosen["prompts"] = tuple(signals.prompts[group] for group in groups)
    chosen["components"] = {label: values_PK[groups] for label, values_PK in signals.components.items()}
    return replace(signals, **chosen)


def _recorded(rollouts: Rollouts, needs: Needs, config: StageConfig, longest: int) -> Signals:
    """The signals that were recorded when the batch was sampled, scored and prepared."""
    assert rollouts.rewards_PK is not None and rollouts.valid_PK is not None
    spread, reference = spread_PK(rollouts.mask_PKT, config.score), rollouts.reference_logprobs_PKT
    if not needs.reference_logprobs:
        reference = None
    return Signals(
        rewards_PK=rollouts.rewards_PK,
        lengths_PK=rollouts.lengths_PK,
        valid_PK=rollouts.valid_PK,
        mask_PKT=rollouts.mask_PKT,
        longest=longest,
        prompts=tuple(rollouts.prompts),
        components=rollouts.components,
        correct_PK=rollouts.correct_PK,
        truncated_PK=rollouts.truncated_PK,
        keep_PKT=rollouts.keep_PKT,
        rollout_logprobs_PKT=rollouts.rollout_logprobs_PKT,
        rollout_scores_PK=rollouts.rollout_logprobs_PKT.sum(-1) * spread,
        entropy_PKT=rollouts.entropy_PKT,
        reference_logprobs_PKT=reference,
        reference_scores_PK=None if reference is None else reference.sum(-1) * spread,
        teacher_logprobs_PKT=rollouts.teacher_logprobs_PKT,
    )


def _order(rollouts: Rollouts, keys: Sequence[str]) -> Tensor:
    assert rollouts.rewards_PK is not None and rollouts.valid_PK is not None
    return order_PKK(keys, rollouts.rewards_PK, rollouts.components, rollouts.lengths_PK, rollouts.valid_PK)
