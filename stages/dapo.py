"""DAPO, as the manual defines it: whoever beats the group's mean is rewarded.

    A_i = r_i - mean(r)            L = -(1/K) * sum_i A_i * log pi(y_i | x)

Source: operating manual, table of the four algorithms. What the manual calls DAPO is known elsewhere as Dr. GRPO's
advantage; the published DAPO (arXiv 2503.14476) also divides by the standard deviation, clips the probability ratio,
refills uniform groups and penalises overlong completions.
Departure: ``score: mean`` averages the log-probability over a completion's tokens; the manual sums (``score: sum``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.advantages import centre
from pipeline.config import StageConfig
from pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class DAPOConfig(StageConfig):
    """Options of DAPO."""

    stage: Literal["dapo"]
    """This algorithm."""


def weigh(signals: Signals, config: DAPOConfig) -> Tensor:
    """A_i; the 1/K of the loss is the core's.

    Shapes: rewards [P, K] -> [P, K]. Edge: a group of equal rewards weighs exactly zero.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> config = DAPOConfig(stage="dapo", steps=1)
    >>> weigh(Signals(rewards_PK=rewards, lengths_PK=torch.ones(1, 4)), config).tolist()
    [[0.75, -0.25, -0.25, -0.25]]
    """
    return centre(signals.rewards_PK)


STAGE = Stage(
    name="dapo",
    summary="reward against the group's mean; quick, the usual warm-up",
    config=DAPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(),
)
