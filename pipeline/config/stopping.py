"""When a stage ends before its steps are done, and what guards it against collapse; see docs/switching.md."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from gradus.pipeline.config.options import Options
from gradus.pipeline.statistics.drops import alarm_level


class Plateau(Options):
    """A curve that has stopped rising."""

    of: Literal["accuracy", "reward"] = "accuracy"
    """Which curve: accuracy on the validation prompts, or the training reward of a step."""
    window: int = Field(8, ge=4)
    """Number of newest measurements that a straight line is fitted to: evaluations, or steps where it is the reward."""
    gain: float = Field(0.02, gt=0)
    """The stage ends once the upper bound of the line's gain over the window is less than this."""


class Until(Options):
    """Rules that end a stage early; the first that holds ends it."""

    accuracy: float | None = Field(None, gt=0, lt=1)
    """Accuracy on the validation prompts that the lower bound of an evaluation must reach."""
    plateau: Plateau | None = None
    """Rule for a curve that no longer rises."""
    entropy: float | None = Field(None, gt=0)
    """Floor of the sampler's entropy, in nats a token, by the upper bound of its mean over ``window`` steps."""
    uniform: float | None = Field(None, gt=0, lt=1)
    """Limit of the share of groups whose rewards are all equal, by the lower bound of its mean over ``window`` steps:
    above it there is little left to learn from."""
    window: int = Field(10, ge=3)
    """Number of newest steps that ``entropy`` and ``uniform`` average over."""
    errors: float = Field(1.645, gt=0)
    """How many standard errors a bound lies away from its estimate, in all of these rules; more where a window has few
    measurements, so that the confidence stays the same (1.645: 95 % on the one side that counts)."""
    rollouts: int | None = Field(None, ge=1)
    """Budget of completions that the stage may sample or train on; the step that reaches it is the last."""
    tokens: int | None = Field(None, ge=1)
    """Budget of completion tokens, in the same way."""
    seconds: float | None = Field(None, gt=0)
    """Budget of seconds of training, in the same way. Times differ between runs, so no two end at the same step."""


class Guard(Options):
    """The collapse guard: where a stage falls significantly below its best, it returns to that checkpoint."""

    watch: Literal["accuracy", "reward"] = "accuracy"
    """The measure that is compared with its best: accuracy on the validation prompts, prompt by prompt, or the training
    reward."""
    tasks: Literal["own", "all"] = "own"
    """Which tasks it watches: those that the stage trains on, or also all others, whose validation prompts are then
    answered at each evaluation too and compared with what they were at the stage's start."""
    every: int = Field(10, ge=4)
    """Steps whose mean is one measurement of the reward; accuracy is measured every ``eval_every`` steps."""
    evaluations: int = Field(2, ge=1)
    """Measurements in a row that must be significantly below the best; at the end of the stage one is enough."""
    risk: float = Field(0.01, gt=0, lt=0.5)
    """Largest probability, over the whole stage, of a false alarm."""
    then: Literal["hand_over", "stop", "slower"] = "hand_over"
    """What an alarm leads to: hand over the best checkpoint; stop the run; or continue from that checkpoint with a
    smaller learning rate."""
    factor: float = Field(0.5, gt=0, lt=1)
    """With ``slower``: factor of the learning rate."""
    times: int = Field(2, ge=1)
    """With ``slower``: largest number of times; the next alarm hands over."""

    def level(self, steps: int, eval_every: int) -> float:
        """The p-value that one comparison must stay under, in a stage of so many steps."""
        every = self.every if self.watch == "reward" else eval_every
        return alarm_level(self.risk, math.ceil(steps / every))
