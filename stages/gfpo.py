"""GFPO: the order within a group counts, not the absolute score; or, as published, the best of a larger group.

    manual   L = -sum over pairs (i better than j) of log sigmoid((s_i - s_j) / temperature)
    paper    A_i = (r_i - mean) / std within the k kept of K, 0 for the others
             L = -(1/tokens) * sum over tokens of min(ratio A, clip(ratio, 0.8, 1.2) A)

Manual: ``s`` is a completion's log-probability. The order comes from ``ranking``, a list of keys: the reward first,
then the quality of the reasoning, so that a group whose rewards are all equal still teaches ("even where the reward is
binary, the order is dense"). L depends on the policy only through s, so the shared learner takes -dL/ds_i (times K, for
its own 1/K) as completion i's weight; ``update/loss`` is the value of that weighted log-likelihood, not of L.
Paper: kept are the shortest, or those with the most reward a token; how many depends on how hard the prompt is.

Source: operating manual, table of the four algorithms and "Why GFPO for reasoning"; for ``variant: paper`` arXiv
2508.09726.
Departures (manual): ``score: mean`` is the mean log-probability of a token; the sum made gradient norms of 7-9, because
a long completion's score drowns the order. The sum over pairs is divided by K; ``normalise: none`` is literal. Pairs of
equal reward weigh as much as their keys agree with the reward; ``ties: all`` is literal, and is led astray where right
answers are mostly luck.
Departure (paper): completions tied with the last that is kept are kept too; no KL and no entropy term.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gradus.pipeline.advantages import best_kept, preference_pull, standardise, tie_weight, tied
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Field(ge=2)]


class GFPOConfig(StageConfig):
    """Options of GFPO."""

    earlier: ClassVar = {"ties": "all"}
    presets: ClassVar = {
        "paper": {"advantage": "kept", "group_size": 16, "keep": (4, 6, 8, 8), "score": "batch", "clip": (0.2, 0.2)}
    }
    stage: Literal["gfpo"]
    """Discriminator: selects GFPO."""
    advantage: Literal["pairs", "kept"] = "pairs"
    """Preferences over all ranked pairs, or standardised rewards within the part of a group that is kept."""
    ranking: list[str] = Field(["reward"], min_length=1)
    """Keys that order a group, most important first: ``reward``, a component's name, ``shorter`` or ``longer``."""
    ties: Literal["agreement", "all"] = "agreement"
    """How much the further keys of ``ranking`` say about completions of equal reward: as much as they have been right
    about those of different reward, and no more than the reward itself says; or everything."""
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
        worth_PK = -signals.lengths_PK if config.keep_by == "shorter" else signals.rewards_PK / signals.lengths_PK
        return standardise(signals.rewards_PK, best_kept(worth_PK, _counts(signals, config), signals.valid_PK))
    assert signals.policy_scores_PK is not None and signals.order_PKK is not None
    weight = signals.state.get("tie_weight", 1.0) if config.ties == "agreement" else 1.0
    order_PKK = signals.order_PKK * (1 - (1 - weight) * tied(signals.rewards_PK))
    pull_PK = preference_pull(signals.policy_scores_PK / config.temperature, order_PKK) / config.temperature
    return pull_PK if config.normalise == "group" else pull_PK * pull_PK.shape[-1]


def observe(signals: Signals, state: Mapping[str, float], config: GFPOConfig) -> Mapping[str, float]:
    """What the further keys have been right about so far, and the weight that this gives them."""
    if config.ties != "agreement" or signals.order_PKK is None or signals.quality_PKK is None:
        return state
    return tie_weight(signals.rewards_PK, signals.order_PKK, signals.quality_PKK, state)


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
    observe=observe,
    needs=lambda config: (
        Needs(difficulty=not isinstance(config.keep, int))
        if config.advantage == "kept"
        else Needs(policy_scores=True, ranking=tuple(config.ranking))
    ),
)
