"""SFT: imitate worked solutions before any reward is asked for.

    L = -(1/N) * sum over the N completion tokens of log pi(token)

The group is one demonstration and its weight is one, so the shared update *is* completion-only cross-entropy. With the
default ``score: batch`` every token of the batch counts the same.

Source: the first stage of the manual's pipeline; the manual gives no formula for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class SFTConfig(StageConfig):
    """Options of supervised fine-tuning."""

    stage: Literal["sft"]
    """Discriminator: selects SFT."""
    prompts_per_step: int = Field(64, ge=1)
    """Demonstrations in a batch."""
    group_size: Literal[1] = 1  # type: ignore[assignment]
    """One demonstration a prompt."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW; the default suits a small model that learns from scratch, 1e-5 a pretrained one."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up."""
    score: Literal["sum", "mean", "batch"] = "batch"
    """How a completion's weight spreads over its tokens; ``batch`` is the usual mean over all tokens of the batch."""


def weigh(signals: Signals, config: SFTConfig) -> Tensor:
    """Every demonstration weighs one.

    Shapes: -> [P, 1].
    """
    return signals.rewards_PK.new_ones(signals.rewards_PK.shape)


STAGE = Stage(
    name="sft",
    summary="supervised fine-tuning on demonstrations: completion-only cross-entropy",
    config=SFTConfig,
    weigh=weigh,
    needs=lambda config: Needs(completions="demonstrations"),
)
