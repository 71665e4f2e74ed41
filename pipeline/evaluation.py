"""Held-out accuracy: one greedy completion a prompt, with its 95 % interval."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from pipeline.config import PipelineConfig
from pipeline.policy import Policy
from pipeline.rewards import RewardSuite
from pipeline.scoring import sample_and_score
from pipeline.types import Prompt, Rollouts


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a set of prompts."""

    accuracy: float
    """Share of prompts whose completion is correct."""
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy."""
    prompts: int
    errors: int
    """Completions whose verifier failed; they count as not correct."""
    seconds: float
    rollouts: Rollouts
    components: dict[str, list[list[float]]] = field(default_factory=dict)
    """label of a reward -> P lists of one score; NaN where the reward failed."""

    def record(self) -> dict[str, object]:
        """As it is stored in a checkpoint's record."""
        return {"accuracy": self.accuracy, "interval": list(self.interval), "prompts": self.prompts}


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a share; unlike the normal one it stays inside [0, 1] and has a width at 0 and 1.

    Source: E. B. Wilson (1927), z = 1.96.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    z = 1.959964
    share, z2 = correct / total, z * z / total
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(policy: Policy, prompts: list[Prompt], suite: RewardSuite, pipeline: PipelineConfig) -> Evaluation:
    """Accuracy of the policy on ``prompts`` by the pipeline's accuracy reward."""
    began = time.perf_counter()
    rollouts, scores = sample_and_score(policy, prompts, 1, pipeline.sampling, None, suite)
    values = [row[0] for row in scores.components[pipeline.accuracy_reward]]
    correct = sum(value >= pipeline.evaluation.threshold for value in values)  # NaN, a failed verifier, is not correct
    return Evaluation(
        accuracy=correct / len(prompts),
        interval=wilson_interval(correct, len(prompts)),
        prompts=len(prompts),
        errors=scores.errors.get(pipeline.accuracy_reward, 0),
        seconds=time.perf_counter() - began,
        rollouts=rollouts,
        components=scores.components,
    )
