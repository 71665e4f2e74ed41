"""Options of rewards, and of what counts as a correct completion."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gradus.pipeline.config.options import RUNTIME, Name, Options


class RewardConfig(Options):
    """One component of the reward."""

    reward: str
    """Name of a reward (``gradus rewards`` lists them), or one of your own as ``package.module:function``."""
    name: Name | None = None
    """Its label in metrics and rankings; default: the reward's name, or the function's."""
    weight: float = 1.0
    """Factor in the weighted sum; 0 logs the component (and lets a ranking use it) without rewarding it."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Options of the reward."""
    time_limit: float = Field(5.0, gt=0)
    """Seconds one completion may take before its verifier is killed and the error is counted."""
    env: Annotated[list[str], RUNTIME] = Field(default_factory=list)
    """Environment variables that the reward needs although they look like secrets, such as ``OPENAI_API_KEY``."""

    @property
    def label(self) -> str:
        """The name that metrics and rankings use."""
        return self.name or self.reward.rpartition(":")[2]


ROUNDING = 1e-6
"""The most by which a score may miss a threshold that it means to reach, in units of the threshold or of 1: some ulps
of float32, in which rewards of your own may compute."""


class EvaluationConfig(Options):
    """How held-out accuracy is measured: one greedy completion a prompt."""

    reward: str | None = None
    """Component that decides correctness; default: the first reward."""
    threshold: float = 1.0
    """A completion is correct where that component reaches this, apart from rounding."""
    every: Annotated[int | None, RUNTIME] = Field(None, ge=1)
    """Of several tasks, in the pipeline's ``evaluation``: stages after which the tasks are measured again that a stage
    does not train on; default 1, after each. The last stage measures all."""
    prompts: Annotated[int | None, RUNTIME] = Field(None, ge=1)
    """The most held-out prompts of such a task that are answered then; default: all."""

    def is_correct(self, score: float) -> bool:
        """Whether this score of that component counts as correct, in training and in every evaluation; NaN does not.

        Sums such as 0.6 + 0.3 + 0.1 end an ulp below the number that they mean, in float64 or in float32.

        >>> EvaluationConfig().is_correct(0.6 + 0.3 + 0.1)
        True
        """
        return score >= self.threshold - ROUNDING * max(1.0, abs(self.threshold))
