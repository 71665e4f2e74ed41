"""DAPO: a completion whose reward is above its group's mean becomes more probable, one below it less.

    manual   A_i = r_i - mean(r)                          L = -(1/K) * sum_i A_i * log pi(y_i | x)
    paper    A_i = (r_i - mean(r)) / std(r), r with the soft overlong penalty
             L = -(1/tokens) * sum over tokens of min(ratio A, clip(ratio, 0.8, 1.28) A)
             groups that are all correct or all wrong are dropped and replaced

Source: operating manual, table of the four algorithms; for ``variant: paper`` arXiv 2503.14476. What the manual calls
DAPO is known elsewhere as Dr. GRPO's advantage.
Departure (manual): ``score: mean`` averages the log-probability over a completion's tokens; the manual sums
(``score: sum``).
Departure (paper): refilling ends after ``refills`` further batches, and the step trains on what it has found by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gradus.pipeline.advantages import centre, overlong_penalty, standardise
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class DAPOConfig(StageConfig):
    """Options of DAPO."""

    presets: ClassVar = {
        "paper": {"advantage": "standardised", "score": "batch", "clip": (0.2, 0.28), "refills": 4, "overlong": 0.2}
    }
    stage: Literal["dapo"]
    """Discriminator: selects DAPO."""
    advantage: Literal["centred", "standardised"] = "centred"
    """Reward minus the group's mean, or that divided by the group's standard deviation."""
    refills: int = Field(0, ge=0)
    """Drop groups whose completions are all correct or all wrong and sample further prompts in their place, at most
    this many times a step; 0 keeps every group."""
    overlong: float = Field(0.0, ge=0, le=1)
    """Last part of ``max_tokens`` over which a completion's reward falls by up to 1; 0: no penalty."""


def weigh(signals: Signals, config: DAPOConfig) -> Tensor:
    """A_i; the 1/K of the loss is the core's.

    Shapes: rewards [P, K] -> [P, K]. Edge: a group of equal rewards weighs exactly zero.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> config = DAPOConfig(stage="dapo", steps=1)
    >>> weigh(Signals(rewards_PK=rewards, lengths_PK=torch.ones(1, 4)), config).tolist()
    [[0.75, -0.25, -0.25, -0.25]]
    """
    rewards_PK = signals.rewards_PK
    if buffer := round(config.overlong * signals.longest):
        rewards_PK = rewards_PK + overlong_penalty(signals.lengths_PK, signals.longest, buffer)
    weighed = standardise if config.advantage == "standardised" else centre
    return weighed(rewards_PK, signals.valid_PK)


STAGE = Stage(
    name="dapo",
    summary="reward against the group's mean; quick, the usual warm-up",
    config=DAPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(refills=config.refills),
)
