"""The interface between the core and an algorithm: what a stage may see, what it may declare, and its one function.

A stage is a pure function from :class:`Signals` to weights plus declared :class:`Needs`; the core interprets the
declarations without knowing who asks. The update every stage shares is

    loss = -(1/P) * sum_p (1/K) * sum_i W[p,i] * score[p,i]

where ``score`` is the completion's log-probability under the policy, spread over its tokens as ``config.score`` says
(``sum``; ``mean`` over its own tokens; ``batch``: the sum divided by the batch's mean completion length). A stage may
weigh every token by itself instead. A loss that is not of this shape, such as a preference loss L(score) of a group,
fits by W = -K * dL/dscore, with equal gradient; one of every token's log-probability by W[t] = -K * dL/dscore[t].

This module imports no torch, so that configurations can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gradus.pipeline.config import StageConfig

if TYPE_CHECKING:
    from torch import Tensor

    from gradus.pipeline.types import Prompt


@dataclass(frozen=True)
class Signals:
    """What a stage may use to weigh a batch. A field is None unless the stage's needs ask for it."""

    rewards_PK: Tensor
    """float32 weighted reward of each completion; without meaning where ``valid_PK`` is false."""
    lengths_PK: Tensor
    """int64 completion lengths in tokens."""
    valid_PK: Tensor | None = None
    """bool, false where a reward could not be computed: such a completion takes no part in the statistics of its group
    and gets no weight. Always there in training; None: all are valid."""
    mask_PKT: Tensor | None = None
    """bool, true on a completion's own tokens; always there."""
    longest: int = 0
    """``max_tokens`` of the sampler; always there."""
    prompts: tuple[Prompt, ...] = ()
    """P prompts, with their metadata and their tasks; always there in training."""
    components: Mapping[str, Tensor] = field(default_factory=dict)
    """label of a reward -> float32 [P, K], not a number where it failed; always there."""
    correct_PK: Tensor | None = None
    """bool, whether a completion counts as correct, as ``evaluation`` says; always there in training."""
    truncated_PK: Tensor | None = None
    """bool, true where ``max_tokens`` ended a completion; always there in training."""
    keep_PKT: Tensor | None = None
    """bool, false on tokens that ``mask_truncated``, ``mask_sequences`` or ``mask_tokens`` leave out; the core gives
    them no weight, whatever the stage says. None: all are kept."""
    rollout_logprobs_PKT: Tensor | None = None
    """float32 log-probability of each token under the policy that sampled, in nats, 0 outside the mask: the
    denominator of ratios (see ``old_logprobs``). Always there in training."""
    rollout_scores_PK: Tensor | None = None
    """float32 score of each completion at sampling, spread as ``config.score`` says, in nats; there with them."""
    entropy_PKT: Tensor | None = None
    """float32 entropy of the distribution that each token was sampled from, in nats, 0 outside the mask; there where
    the policy sampled."""
    state: Mapping[str, float] = field(default_factory=dict)
    """What the stage's ``observe`` made of all batches up to this one; always there."""
    order_PKK: Tensor | None = None
    """bool, true at [p, i, j] where completion i is better than completion j by the stage's ranking keys."""
    quality_PKK: Tensor | None = None
    """bool, the same by the ranking's keys other than ``reward`` alone, so that it is known where they disagree; None
    where the ranking has no reward or nothing else."""
    policy_scores_PK: Tensor | None = None
    """float32 score of each completion under the policy as it is now (spread as ``config.score`` says), in nats."""
    policy_logprobs_PKT: Tensor | None = None
    """float32 log-probability of each token under the policy as it is now, in nats, 0 outside the mask."""
    log_ratio_PK: Tensor | None = None
    """float32 summed log pi(y|x) - log pi_ref(y|x), in nats."""
    reference_logprobs_PKT: Tensor | None = None
    """float32 log-probability of each token under the reference policy, in nats, 0 outside the mask."""
    reference_scores_PK: Tensor | None = None
    """float32 score of each completion under it, spread as ``config.score`` says; there with them."""
    teacher_logprobs_PKT: Tensor | None = None
    """float32 log-probability of each token under the teacher of its prompt, in nats, 0 outside the mask."""
    reference_rewards_PK: Tensor | None = None
    """float32 rewards of K completions that the reference policy sampled for the same prompts."""
    reference_valid_PK: Tensor | None = None
    """bool, false where such a reward could not be computed; there where the rewards are. None: all are valid."""
    values_P: Tensor | None = None
    """float32 a prompt critic's V(x), in reward units, before this batch has trained it."""
    values_PKT: Tensor | None = None
    """float32 a token critic's V(x, y before t), in reward units, before this batch has trained it; 0 outside the
    mask."""
    difficulty_P: Tensor | None = None
    """float32, share of the groups of this stage so far, this batch's included, that have a higher mean reward; groups
    with an equal one count half. 0 is the easiest, 1 the hardest."""


@dataclass(frozen=True)
class Critic:
    """A value function that the core trains by squared error on the rewards."""

    kind: Literal["prompt", "token"]
    """A linear head on the policy's hidden state at the prompt's end, V(x); or a network of its own, begun as a copy of
    the policy, that values every position of a completion."""
    lr: float
    """Its learning rate."""
    warmup: int = 0
    """First steps of the stage in which it alone is trained while the policy stays as it is."""
    clip: float | None = None
    """Largest change of a value by one batch's updates that the loss rewards; null: no bound."""


@dataclass(frozen=True)
class Needs:
    """What a stage declares and the core provides."""

    completions: Literal["policy", "demonstrations", "pairs"] = "policy"
    """Source of the completions: the policy being trained, or the task, which gives one demonstration for each prompt,
    or a pair of which the first is chosen (reward 1) and the second rejected (reward 0)."""
    ranking: tuple[str, ...] = ()
    """Keys that order a group, most important first: ``reward``, a reward component's name, ``shorter``, ``longer``."""
    policy_scores: bool = False
    """Fill ``policy_scores_PK``, again before each update of a batch."""
    policy_logprobs: bool = False
    """Fill ``policy_logprobs_PKT``, again before each update of a batch."""
    reference: bool = False
    """Keep a reference policy: the one that the option ``reference`` chooses, or a frozen copy of the policy, taken at
    the stage's start or every ``refresh_reference`` steps."""
    refresh_reference: int = 0
    """Steps between refreshes of the reference policy; 0 keeps the stage's start."""
    reference_rewards: bool = False
    """Sample and score a second group from the reference policy for each prompt."""
    log_ratio: bool = False
    """Fill ``log_ratio_PK``, again before each update of a batch."""
    reference_logprobs: bool = False
    """Fill ``reference_logprobs_PKT`` and ``reference_scores_PK``."""
    teacher_logprobs: bool = False
    """Fill ``teacher_logprobs_PKT`` by the policies that the stage's option ``teacher`` names."""
    critic: Critic | None = None
    """Train a value function, and fill ``values_P`` or ``values_PKT``."""
    difficulty: bool = False
    """Fill ``difficulty_P``."""
    refills: int = 0
    """Drop groups whose completions are all correct or all wrong, and sample further prompts in their place, at most
    this many times a batch; 0 keeps every group."""
    resample: bool = False
    """After an epoch, keep only the prompts whose completions were not all correct."""
    likelihood: float = 0.0
    """Factor of a further loss: the mean negative log-likelihood of the tokens of correct completions."""

    def reference_reads(self, config: StageConfig) -> bool:
        """Whether the reference policy reads the completions: for the algorithm, or for the penalty ``kl``."""
        return self.reference_logprobs or self.log_ratio or bool(config.kl)


@dataclass(frozen=True)
class Stage:
    """One algorithm, as the core sees it. The laws that it must obey are in :mod:`gradus.pipeline.stage_laws`."""

    name: str
    """Its name in configurations, where it is built in or published, and its default label."""
    summary: str
    """One line for ``gradus stages``."""
    config: type[StageConfig]
    """Its options."""
    weigh: Callable[[Signals, Any], Tensor]
    """(signals, config) -> float32 weights [P, K] (or [P, K, T]); pure, detached, 0 where a row needs no update."""
    needs: Callable[[Any], Needs]
    """config -> what the core must provide."""
    observe: Callable[[Signals, Mapping[str, float], Any], Mapping[str, float]] | None = None
    """(signals of a whole batch, state, config) -> the state after it, named numbers, which begins empty; pure. It is
    called once a batch, before its completions are weighed, and its state is part of exact resume."""
