"""GSPO: the ratio to the sampler's policy is one of whole completions, not of their tokens.

    A_i = (r_i - mean(r)) / std(r)
    s_i = (pi(y_i | x) / pi_old(y_i | x)) ^ (1 / |y_i|)  =  exp(mean over tokens of log pi - log pi_old)
    L   = -(1/K) * sum_i min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)

A completion's gradient is s_i A_i times that of its mean log-probability, or zero where the clipped form is the smaller
one; so the shared learner takes s_i A_i, or 0, as its weight, again before each update.

Source: arXiv 2507.18071, which is also that of the bounds. Its ratio is always that of completions of one length, so
``score`` is ``mean``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from gradus.pipeline.advantages import centre, standardise
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class GSPOConfig(StageConfig):
    """Options of GSPO."""

    own_ratio: ClassVar[str] = "sequence_clip"
    stage: Literal["gspo"]
    """Discriminator: selects GSPO."""
    advantage: Literal["standardised", "centred"] = "standardised"
    """Reward minus the group's mean, divided by the group's standard deviation or not."""
    sequence_clip: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0)]] = (3e-4, 4e-4)
    """[low, high]: bounds of a completion's ratio, [1-low, 1+high]. They are much narrower than those of tokens,
    because a mean over many tokens moves little."""
    score: Literal["mean"] = "mean"  # type: ignore[assignment]
    """A completion's score is the mean of its tokens' log-probabilities."""


def weigh(signals: Signals, config: GSPOConfig) -> Tensor:
    """s_i A_i, and 0 where the clip holds a completion.

    Shapes: rewards, policy_scores, rollout_scores [P, K] -> [P, K]. Edge: equal rewards weigh exactly zero.

    >>> import torch
    >>> scores, now = torch.zeros(1, 3), torch.tensor([[1.5, 1.1, 0.5]]).log()
    >>> rewards = torch.tensor([[1.0, 1.0, 0.0]])
    >>> signals = Signals(rewards, torch.ones(1, 3), policy_scores_PK=now, rollout_scores_PK=scores)
    >>> config = GSPOConfig(stage="gspo", steps=1, advantage="centred", sequence_clip=(0.2, 0.2))
    >>> [round(weight, 4) for weight in weigh(signals, config)[0].tolist()]
    [0.0, 0.3667, 0.0]
    """
    assert signals.policy_scores_PK is not None and signals.rollout_scores_PK is not None
    weighed = standardise if config.advantage == "standardised" else centre
    advantages_PK = weighed(signals.rewards_PK, signals.valid_PK)
    ratio_PK = (signals.policy_scores_PK - signals.rollout_scores_PK).clamp(max=20.0).exp()
    low, high = config.sequence_clip
    held_PK = ((advantages_PK > 0) & (ratio_PK > 1 + high)) | ((advantages_PK < 0) & (ratio_PK < 1 - low))
    return (advantages_PK * ratio_PK).where(~held_PK, 0)


STAGE = Stage(
    name="gspo",
    summary="reward against the group's, with a ratio of whole completions; for models whose tokens' ratios are noisy",
    config=GSPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(policy_scores=True),
)
