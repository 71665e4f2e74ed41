"""GFPO: the order within a group counts, not the absolute score; or, as published, the best of a larger group.

    manual   L = -sum over pairs (i better than j) of log sigmoid((s_i - s_j) / temperature)
    paper    A_i = (r_i - mean) / std within the k kept of K, 0 for the others
             L = -(1/tokens) * sum over tokens of min(ratio A, clip(ratio, 0.8, 1.2) A)

Manual: ``s`` is a completion's log-probability. The order comes from ``ranking``, a list of keys: the reward first,
then the quality of the reasoning, so that a group whose rewards are all equal still teaches ("even where the reward is
binary, the order is dense"). The loss reaches the policy only through s, so the shared learner takes -dL/ds_i (times K,
for its own 1/K) as completion i's weight and gets exactly this loss's gradient. The ``update/loss`` that it reports is
the value of that weighted log-likelihood, not of L.

Paper: kept are the shortest, or those with the most reward a token; how many depends on how hard the prompt is among
those met so far.

Source: operating manual, table of the four algorithms and "Why GFPO for reasoning"; for ``variant: paper`` arXiv
2508.09726.
Departure (manual): ``score: mean`` scores by the mean log-probability of a token. The manual sums, which made gradient
norms of 7-9 and gained little on a small model, because a long completion's score drowns the order.
Departure (manual): the sum over pairs is divided by K, as in the other losses; ``normalise: none`` is literal.
Departure (paper): completions tied with the last that is kept are kept too; no KL and no entropy term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gradus.pipeline.advantages import best_kept, preference_pull, standardise, tied
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Field(ge=2)]


class GFPOConfig(StageConfig):
    """Options of GFPO."""

    presets: ClassVar = {
        "paper": {"advantage": "kept", "group_size": 16, "keep": (4, 6, 8, 8), "score": "batch", "clip": (0.2, 0.2)}
    }
    stage: Literal["gfpo"]
    """Discriminator: selects GFPO."""
    advantage: Literal["pairs", "kept"] = "pairs"
    """Preferences over all ranked pairs, or standardised rewards within the part of a group that is kept."""
    ranking: list[str] = Field(["reward"], min_length=1)
    """Keys that order a group, most important first: ``reward``, a component's name, ``shorter`` or ``longer``."""
    ties: Literal["all", "correct"] = "all"
    """Which completions of equal reward the further keys of ``ranking`` order: all of them, or the correct ones alone,
    so that a group without any teaches nothing."""
    temperature: float = Field(1.0, gt=0)
    """Divides the score differences inside the sigmoid; smaller sharpens the preference."""
    normalise: Literal["group", "none"] = "group"
    """Divide a group's sum over pairs by K, or take it as it is."""
    keep: Count | tuple[Count, Count, Count, Count] = 8
    """How many completions are kept: a number, or four of them, for the easiest to the hardest quarter of prompts."""
    keep_by: Literal["shorter", "efficiency"] = "shorter"
    """Keep the shortest, or those with the highest reward a token."""

    @model_validator(mode="after")
    def _groups_are_large_enough(self) -> GFPOConfig:
        most = self.keep if isinstance(self.keep, int) else max(self.keep)
        if self.advantage == "kept" and most > self.group_size:
            raise ValueError(f"`keep` {most} asks for more completions than `group_size` {self.group_size} samples")
        return self


def weigh(signals: Signals, config: GFPOConfig) -> Tensor:
    """-K dL/ds of the preference loss (with ``normalise: group`` L is divided by K, so that the two cancel), or A_i.

    Shapes: policy_scores [P, K], order [P, K, K] -> [P, K]. Edge: a group without an order weighs exactly zero.

    >>> import torch
    >>> order = torch.tensor([[[False, True], [False, False]]])
    >>> signals = Signals(torch.zeros(1, 2), torch.ones(1, 2), order_PKK=order, policy_scores_PK=torch.zeros(1, 2))
    >>> weigh(signals, GFPOConfig(stage="gfpo", steps=1, normalise="none")).tolist()
    [[1.0, -1.0]]
    """
    if config.advantage == "kept":
        kept_PK = best_kept(_worth(signals, config), _counts(signals, config), signals.valid_PK)
        return standardise(signals.rewards_PK, kept_PK)
    assert signals.policy_scores_PK is not None and signals.order_PKK is not None
    order_PKK = signals.order_PKK
    if config.ties == "correct":
        assert signals.correct_PK is not None
        both_PKK = signals.correct_PK[:, :, None] & signals.correct_PK[:, None, :]
        order_PKK = order_PKK & (both_PKK | ~tied(signals.rewards_PK))
    pull_PK = preference_pull(signals.policy_scores_PK / config.temperature, order_PKK) / config.temperature
    return pull_PK if config.normalise == "group" else pull_PK * pull_PK.shape[-1]


def _worth(signals: Signals, config: GFPOConfig) -> Tensor:
    """The measure by which completions are kept; higher is better. Shapes: -> [P, K]."""
    return -signals.lengths_PK if config.keep_by == "shorter" else signals.rewards_PK / signals.lengths_PK


def _counts(signals: Signals, config: GFPOConfig) -> Tensor:
    """The number of completions that each group keeps. Shapes: -> int64 [P]."""
    keep, groups = config.keep, signals.lengths_PK[:, 0]
    if isinstance(keep, int):
        return groups.new_full(groups.shape, keep).long()
    assert signals.difficulty_P is not None
    return groups.new_tensor(keep).long()[(signals.difficulty_P * 4).long().clamp(max=3)]


STAGE = Stage(
    name="gfpo",
    summary="pairwise preferences over a ranked group; the order may come from the reasoning, not the reward alone",
    config=GFPOConfig,
    weigh=weigh,
    needs=lambda config: (
        Needs(difficulty=not isinstance(config.keep, int))
        if config.advantage == "kept"
        else Needs(policy_scores=True, ranking=tuple(config.ranking))
    ),
)
