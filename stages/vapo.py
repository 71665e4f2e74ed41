"""VAPO, as the manual defines it: look past this one group, what does this prompt usually score?

    A_i = r_i - V(x)                                    (alpha = 0)
    A_i = r_i - alpha * mean(r) - (1 - alpha) * V(x)    (0 < alpha <= 1)
    L   = -(1/K) * sum_i A_i * log pi(y_i | x)

V is a value head on the policy's hidden state at the prompt's last token, trained by squared error on the rewards.
The hidden state is detached: the critic learns from the policy and never moves it.

Source: operating manual, table of the four algorithms. The published VAPO (arXiv 2504.05118) has a critic for every
token, pre-trained, with length-adaptive GAE and a likelihood term on correct completions.
Departure: ``score: mean`` averages the log-probability over a completion's tokens; the manual sums (``score: sum``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.advantages import mixed_baseline
from pipeline.config import StageConfig
from pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class VAPOConfig(StageConfig):
    """Options of VAPO."""

    stage: Literal["vapo"]
    """This algorithm."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of the group's mean in the baseline; 0 is the critic alone, 1 the group alone."""
    critic_lr: float = Field(1e-2, gt=0)
    """Learning rate of the value head."""


def weigh(signals: Signals, config: VAPOConfig) -> Tensor:
    """A_i; the 1/K of the loss is the core's.

    Shapes: rewards [P, K], values [P] -> [P, K].
    Edge: equal rewards do not weigh zero where alpha < 1: the group may still differ from what the critic expected.

    >>> import torch
    >>> signals = Signals(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), values_P=torch.tensor([0.5]))
    >>> weigh(signals, VAPOConfig(stage="vapo", steps=1, alpha=0.0)).tolist()
    [[0.5, -0.5]]
    """
    assert signals.values_P is not None
    return mixed_baseline(signals.rewards_PK, signals.values_P, config.alpha)


STAGE = Stage(
    name="vapo",
    summary="reward against a learned expectation of the prompt, mixed with the group's mean; steady on noisy rewards",
    config=VAPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(critic_lr=config.critic_lr),
)
