"""The interface between the core and an algorithm: what a stage may see, what it may declare, and its one function.

A stage is a pure function from :class:`Signals` to weights plus declared :class:`Needs`; the core interprets the
declarations without knowing who asks. The update every stage shares is

    loss = -(1/P) * sum_p (1/K) * sum_i W[p,i] * score[p,i]

where ``score`` is the completion's log-probability under the policy, spread over its tokens as ``config.score`` says
(``sum``; ``mean`` over its own tokens; ``batch``: the sum divided by the batch's mean completion length). A stage may
weigh every token by itself instead. A loss that is not of this shape, such as a preference loss L(score) of a group,
fits by W = -K * dL/dscore, with equal gradient.

This module imports no torch, so that configurations can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gradus.pipeline.config import StageConfig

if TYPE_CHECKING:
    from torch import Tensor


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
    order_PKK: Tensor | None = None
    """bool, true at [p, i, j] where completion i is better than completion j by the stage's ranking keys."""
    policy_scores_PK: Tensor | None = None
    """float32 score of each completion under the policy as it is now (spread as ``config.score`` says), in nats."""
    log_ratio_PK: Tensor | None = None
    """float32 summed log pi(y|x) - log pi_ref(y|x), in nats."""
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

    completions: Literal["policy", "demonstrations"] = "policy"
    """Source of the completions: the policy being trained, or the task (one demonstration for each prompt)."""
    ranking: tuple[str, ...] = ()
    """Keys that order a group, most important first: ``reward``, a reward component's name, ``shorter``, ``longer``."""
    policy_scores: bool = False
    """Fill ``policy_scores_PK``, again before each update of a batch."""
    reference: bool = False
    """Keep a reference policy: a frozen copy taken at the stage's start, or every ``refresh_reference`` steps."""
    refresh_reference: int = 0
    """Steps between refreshes of the reference policy; 0 keeps the stage's start."""
    reference_rewards: bool = False
    """Sample and score a second group from the reference policy for each prompt."""
    log_ratio: bool = False
    """Fill ``log_ratio_PK``, again before each update of a batch."""
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
