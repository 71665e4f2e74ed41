"""What completes prompts, as training and evaluation see it, and what an engine that is not ours has to offer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.types import Prompt, Rollouts

OnGroup = Callable[[int, list[str]], None]
"""Hears of a group that has ended: the prompt's index, its K texts."""


class Sampler:
    """The built-in sampler: it draws from the very weights that train."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        """What is to be told of the last batch."""

    def weights_of(self, policy: Policy, ranks: Ranks = ALONE) -> contextlib.AbstractContextManager[None]:
        """A time in which everything that is sampled is of this policy as it is now. Every rank enters it."""
        return contextlib.nullcontext()

    def __call__(
        self,
        policy: Policy,
        prompts: list[Prompt],
        group_size: int,
        options: SamplingConfig,
        draw: DrawKey | None,
        return_prompt_states: bool = False,
        on_group: OnGroup | None = None,
        without_logprobs: bool = False,
    ) -> Rollouts:
        """Sample K completions of each prompt; see :func:`gradus.pipeline.rollouts.builtin.sample`.

        ``without_logprobs``: the caller uses the texts alone, so log-probabilities and entropies may be wrong.
        """
        return sample(policy, prompts, group_size, options, draw, return_prompt_states, on_group)


BUILT_IN = Sampler()


@dataclass(frozen=True)
class Request:
    """A prompt of which K completions are asked for."""

    tokens: list[int]
    group_size: int
    seed: int | None
    """Of its draws; None: greedy."""


@dataclass(frozen=True)
class Completion:
    """What an engine drew."""

    tokens: list[int]
    logprobs: list[float]
    """One for each token, nats."""
    ended: bool
    """Whether its last token is one that ends a completion."""


class RolloutEngine(Protocol):
    """An engine with weights of its own."""

    def digest(self) -> str:
        """Of the weights that it holds; empty where they were not pushed."""
        ...

    def load(self, digest: str, policy: Policy) -> None:
        """Take the policy's weights, whose digest is given. Raises: StageFailed, UserError."""
        ...

    def generate(
        self,
        requests: list[Request],
        ends: tuple[int, ...],
        options: SamplingConfig,
        done: Callable[[int, list[Completion]], None],
    ) -> None:
        """Complete the prompts; ``done`` gets each group as it ends, by its index. Raises: StageFailed."""
        ...
