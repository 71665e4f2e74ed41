"""The interface for sampling that training and evaluation use, and the one that an external engine implements."""

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
"""Called when all completions of a group have ended, with the index of the prompt and its K texts."""


class Sampler:
    """The built-in sampler, which samples with the weights that are being trained."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        """Metrics of the last batch."""

    def weights_of(self, policy: Policy, ranks: Ranks = ALONE) -> contextlib.AbstractContextManager[None]:
        """A context in which all samples come from the policy's present weights. Every rank enters it."""
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
    """A prompt, and the number K of completions that are requested."""

    tokens: list[int]
    group_size: int
    seed: int | None
    """Sampling seed; None decodes greedily."""


@dataclass(frozen=True)
class Completion:
    """A completion that an engine has sampled."""

    tokens: list[int]
    logprobs: list[float]
    """The log-probability of each token, in nats."""
    ended: bool
    """Whether its last token is an end token; otherwise it was cut off."""


class RolloutEngine(Protocol):
    """An external engine, which holds its own copy of the weights."""

    def digest(self) -> str:
        """The hash of the weights that it holds; empty where none were pushed."""
        ...

    def load(self, digest: str, policy: Policy) -> None:
        """Load the policy's weights, whose hash is ``digest``. Raises: StageFailed, UserError."""
        ...

    def generate(
        self,
        requests: list[Request],
        ends: tuple[int, ...],
        options: SamplingConfig,
        done: Callable[[int, list[Completion]], None],
    ) -> None:
        """Complete the prompts; ``done`` is called with the index of each group that ends. Raises: StageFailed."""
        ...
