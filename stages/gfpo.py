"""GFPO, as the manual defines it: the order within a group counts, not the absolute score.

    L = -sum over pairs (i better than j) of log sigmoid((s_i - s_j) / temperature)

``s`` is a completion's log-probability. The order comes from ``ranking``, a list of keys: the reward first, then the
quality of the reasoning, so that a group whose rewards are all equal still teaches ("even where the reward is binary,
the order is dense"). Without advantages, the gradient reaches the policy only through s, so the shared learner takes
-dL/ds_i (times K, for its own 1/K) as completion i's weight and gets exactly this loss's gradient.

Source: operating manual, table of the four algorithms and "Why GFPO for reasoning". The published GFPO (arXiv
2508.09726) is another algorithm: it samples more, keeps the shortest, and standardises rewards among those.
Departure: ``score: mean`` scores by the mean log-probability of a token. The manual sums, which made gradient norms of
7-9 and gained little on a small model, because a long completion's score drowns the order (``score: sum`` is literal).
Departure: the sum over pairs is divided by K, as in the other losses; ``normalise: none`` is literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.advantages import preference_pull
from pipeline.config import StageConfig
from pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class GFPOConfig(StageConfig):
    """Options of GFPO."""

    stage: Literal["gfpo"]
    """This algorithm."""
    ranking: list[str] = Field(["reward"], min_length=1)
    """Keys that order a group, most important first: ``reward``, a component's name, ``shorter`` or ``longer``."""
    temperature: float = Field(1.0, gt=0)
    """Divides the score differences inside the sigmoid; smaller sharpens the preference."""
    normalise: Literal["group", "none"] = "group"
    """Divide a group's sum over pairs by K, or take it as it is."""


def weigh(signals: Signals, config: GFPOConfig) -> Tensor:
    """-K dL/ds of the preference loss; with ``normalise: group`` L is divided by K, so that the two cancel.

    Shapes: policy_scores [P, K], order [P, K, K] -> [P, K]. Edge: a group without an order weighs exactly zero.

    >>> import torch
    >>> order = torch.tensor([[[False, True], [False, False]]])
    >>> signals = Signals(torch.zeros(1, 2), torch.ones(1, 2), order_PKK=order, policy_scores_PK=torch.zeros(1, 2))
    >>> weigh(signals, GFPOConfig(stage="gfpo", steps=1, normalise="none")).tolist()
    [[1.0, -1.0]]
    """
    assert signals.policy_scores_PK is not None and signals.order_PKK is not None
    pull_PK = preference_pull(signals.policy_scores_PK / config.temperature, signals.order_PKK) / config.temperature
    return pull_PK if config.normalise == "group" else pull_PK * pull_PK.shape[-1]


STAGE = Stage(
    name="gfpo",
    summary="pairwise preferences over a ranked group; the order may come from the reasoning, not the reward alone",
    config=GFPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(policy_scores=True, ranking=tuple(config.ranking)),
)
