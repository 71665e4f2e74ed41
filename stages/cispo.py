"""CISPO: ratios are clipped as weights, and no token loses its gradient.

    A_i     = (r_i - mean(r)) / std(r)
    w_(i,t) = min(pi(token) / pi_old(token), cap), without a gradient
    L       = -(1/tokens) * sum over tokens of w_(i,t) A_i log pi(token)

Where PPO's clip drops a token whose ratio is out of bounds, here it only counts no more than ``cap``: rare tokens at
which reasoning turns keep their gradient.

Source: arXiv 2506.13585 (MiniMax-M1), which has no lower bound either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gradus.pipeline.advantages import centre, standardise
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class CISPOConfig(StageConfig):
    """Options of CISPO."""

    own_ratio: ClassVar[str] = "ratio_cap"
    stage: Literal["cispo"]
    """Discriminator: selects CISPO."""
    advantage: Literal["standardised", "centred"] = "standardised"
    """Reward minus the group's mean, divided by the group's standard deviation or not."""
    ratio_cap: float = Field(5.0, ge=1)
    """Largest weight that a token's ratio gives it."""
    score: Literal["sum", "mean", "batch"] = "batch"
    """How a completion's weight spreads over its tokens; ``batch``: every token of the batch counts the same."""


def weigh(signals: Signals, config: CISPOConfig) -> Tensor:
    """w_(i,t) A_i.

    Shapes: rewards [P, K], log-probabilities [P, K, T] -> [P, K, T]. Edge: equal rewards weigh exactly zero.

    >>> import torch
    >>> now, then = torch.tensor([[[8.0, 1.5], [0.5, 1.0]]]).log(), torch.zeros(1, 2, 2)
    >>> signals = Signals(torch.tensor([[1.0, 0.0]]), torch.full((1, 2), 2), policy_logprobs_PKT=now,
    ...                   rollout_logprobs_PKT=then)
    >>> weigh(signals, CISPOConfig(stage="cispo", steps=1, advantage="centred")).tolist()
    [[[2.5, 0.75], [-0.25, -0.5]]]
    """
    assert signals.policy_logprobs_PKT is not None and signals.rollout_logprobs_PKT is not None
    weighed = standardise if config.advantage == "standardised" else centre
    log_ratio_PKT = signals.policy_logprobs_PKT - signals.rollout_logprobs_PKT
    ratio_PKT = log_ratio_PKT.clamp(max=20.0).exp().clamp(max=config.ratio_cap)
    return ratio_PKT * weighed(signals.rewards_PK, signals.valid_PK)[..., None]


STAGE = Stage(
    name="cispo",
    summary="reward against the group's, with ratios that are capped weights, so that no token loses its gradient",
    config=CISPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(policy_logprobs=True),
)
