"""The seam between the core and an algorithm: what a stage may see, what it may declare, and the one function it is.

A stage is a pure function from :class:`Signals` to weights plus declared :class:`Needs`; the core interprets the
declarations without knowing who asks. The update every stage shares is

    loss = -(1/P) * sum_p (1/K) * sum_i W[p,i] * score[p,i]

where ``score`` is the completion's log-probability under the policy, spread over its tokens as ``config.score`` says
(``sum``; ``mean`` over its own tokens; ``batch``: the sum divided by the batch's mean completion length). A loss that
is not of this shape, such as a preference loss L(score) of a group, fits by W = -K * dL/dscore, with equal gradient.

This module imports no torch, so that configurations can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import StageConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """What a stage may look at to weigh a batch. A field is None unless the stage's needs ask for it."""

    rewards_PK: Tensor
    """float32 weighted reward of each completion."""
    lengths_PK: Tensor
    """int64 completion lengths in tokens."""
    order_PKK: Tensor | None = None
    """bool, true at [p, i, j] where completion i is better than completion j by the stage's ranking keys."""
    policy_scores_PK: Tensor | None = None
    """float32 score of each completion under the policy as it is now (spread as ``config.score`` says), in nats."""
    log_ratio_PK: Tensor | None = None
    """float32 summed log pi(y|x) - log pi_ref(y|x), in nats."""
    reference_rewards_PK: Tensor | None = None
    """float32 rewards of K completions that the reference policy sampled for the same prompts."""
    values_P: Tensor | None = None
    """float32 the critic's V(x), in reward units, before this batch has trained it."""


@dataclass(frozen=True)
class Needs:
    """What a stage declares and the core provides."""

    completions: Literal["policy", "demonstrations"] = "policy"
    """Who writes the completions: the policy being trained, or the task (one demonstration a prompt)."""
    ranking: tuple[str, ...] = ()
    """Keys that order a group, most important first: ``reward``, a reward component's name, ``shorter``, ``longer``."""
    policy_scores: bool = False
    """Fill ``policy_scores_PK``, anew before each update of a batch."""
    reference: bool = False
    """Keep a reference policy: a frozen copy taken at the stage's start, or every ``refresh_reference`` steps."""
    refresh_reference: int = 0
    """Steps between refreshes of the reference policy; 0 keeps the stage's start."""
    reference_rewards: bool = False
    """Sample and score a second group from the reference policy for each prompt."""
    log_ratio: bool = False
    """Fill ``log_ratio_PK``, anew before each update of a batch."""
    critic_lr: float | None = None
    """Train a value head V(x) at this rate on the policy's hidden state at the prompt's end, and fill ``values_P``."""


@dataclass(frozen=True)
class Stage:
    """One algorithm, as the core sees it."""

    name: str
    """How configurations call it."""
    summary: str
    """One line for ``gradus stages``."""
    config: type[StageConfig]
    """Its options."""
    weigh: Callable[[Signals, Any], Tensor]
    """(signals, config) -> float32 weights [P, K] (or [P, K, T]); pure, detached, 0 where a row needs no update."""
    needs: Callable[[Any], Needs]
    """config -> what the core must provide."""
