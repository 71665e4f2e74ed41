"""How long a probe takes: what it will cost, how many prompts it samples at once, and when it has to end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.types import Prompt

LEAST_PROMPTS = 8
"""The fewest prompts from which anything is concluded. Intervals from so few are wide: 8 solved prompts of 8 are surely
more than 0.67, and 0 of 8 surely fewer than 0.33, so that most rules stay open."""
CHUNK_SHARE = 1 / 8
"""The share of its time that a probe gives to one chunk of prompts, after which it can end."""
TIMED_TOKENS = 8
"""The length of the completions that are timed before a probe."""
TIMED_SECONDS = 1.0
"""If they took less than this, more prompts are timed at once, up to the batch of a stage."""


@dataclass(frozen=True)
class Plan:
    """What a probe is going to do, and what that will cost."""

    prompts: int
    samples: int
    """Completions of each prompt."""
    prompt_seconds: float
    """Seconds that sampling takes for one prompt if all its completions are as long as they may be."""
    seconds: float
    """The time that the probe may take."""

    @property
    def fitting(self) -> int:
        """The number of prompts for which there is time, LEAST_PROMPTS at least."""
        fitting = int(min(self.prompts, self.seconds / self.prompt_seconds))
        return max(fitting, min(LEAST_PROMPTS, self.prompts))


class Watch:
    """Hears of a probe's progress. Override what you need."""

    def planned(self, plan: Plan) -> None:
        """Sampling begins."""

    def group_sampled(self) -> None:
        """The completions of one more prompt have been sampled."""


class Pace:
    """Divides the prompts of a probe into chunks that end in time.

    A chunk never crosses the border of a batch (``size`` prompts), and is a whole batch where that is quick.
    """

    def __init__(self, plan: Plan, size: int, began: float):
        self.plan, self.size, self.began = plan, size, began
        self.prompt_seconds = plan.prompt_seconds

    def next(self, done: int) -> int:
        """How many prompts to sample after the first ``done``; 0 where all are sampled or the time is over."""
        left = self.plan.seconds - (time.perf_counter() - self.began)
        fitting = self.plan.seconds * CHUNK_SHARE / self.prompt_seconds
        if done >= LEAST_PROMPTS:
            fitting = min(fitting, left / self.prompt_seconds)
            if left < self.prompt_seconds:
                return 0
        most = min(self.size - done % self.size, self.plan.prompts - done)
        return min(most, max(1, int(min(fitting, most))))

    def sampled(self, prompts: int, seconds: float) -> None:
        """Take note of how long a chunk took, scoring included."""
        self.prompt_seconds = max(seconds, 1e-6) / prompts


def timed_prompt(policy: Policy, batch: list[Prompt], samples: int, options: SamplingConfig, draw: DrawKey) -> float:
    """Seconds that sampling takes for a prompt if its completions are as long as they may be, by a few tokens.

    The prompt and the tokens are timed separately. Prompts are timed together as far as that is quick, because a device
    may need the same time for one and for many.
    """

    def took(count: int, tokens: int) -> float:
        began = time.perf_counter()
        sample(policy, batch[:count], samples, options.model_copy(update={"max_tokens": tokens}), draw)
        return time.perf_counter() - began

    few = min(TIMED_TOKENS, options.max_tokens)
    took(1, 1)  # the first call also finds out how to sample this model
    count = 1
    while True:
        first, all_of_them = took(count, 1), took(count, few)
        if all_of_them > TIMED_SECONDS or count == len(batch):
            break
        count = min(2 * count, len(batch))
    token = max(0.0, all_of_them - first) / max(1, few - 1)
    return max(1e-6, first + token * (options.max_tokens - 1)) / count
