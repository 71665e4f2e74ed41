"""All the rewards of a pipeline together: a batch of completions goes in, every component's scores come out."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.rewards.custom import check_function
from pipeline.rewards.registry import check_options, find
from pipeline.types import Prompt

if TYPE_CHECKING:
    from pipeline.config import RewardConfig
    from pipeline.rewards.workers import WorkerPool

INSTALL = {"math_verify": "math-verify[antlr4_13_2]", "reasoning_gym": "reasoning-gym"}
"""Package -> what to install."""


@dataclass(frozen=True)
class Scores:
    """What the rewards gave to P x K completions."""

    components: dict[str, list[list[float]]]
    """label -> P lists of K scores, in the reward's range; NaN where the reward failed."""
    errors: dict[str, int]
    """label -> completions it failed on; every label is there."""
    kinds: dict[str, dict[str, int]]
    """label -> kind of failure (``timeout``, ``crash``, ``error``) -> completions; only what happened."""
    examples: dict[str, str]
    """label -> what the first failure said; only labels that failed."""
    seconds: float
    """Wall-clock time."""


def check_rewards(rewards: list[RewardConfig], source: str | None = None) -> None:
    """Raise UserError for a reward that can't be scored: name, options, regular expressions, functions, packages.

    None of the user's code is run. ``source`` is the task's: reasoning_gym's scorers need its prompts.
    """
    for i, config in enumerate(rewards):
        where = f"rewards.{i}"
        if ":" in config.reward:
            check_function(config.reward, config.params, where)
            continue
        reward = find(config.reward, f"{where}.reward")
        check_options(reward, config.params, f"{where}.params")
        for package in reward.packages:
            if "." not in package and importlib.util.find_spec(package) is None:
                fix = f"pip install '{INSTALL[package]}'"
                raise UserError(f"reward {reward.name} needs the package {package}", where=where, fix=fix)
        if config.reward == "reasoning_gym" and source not in (None, "reasoning_gym"):
            raise UserError(
                "the reward reasoning_gym scores only prompts that reasoning_gym generated",
                where=f"{where}.reward",
                got=f"task.source {source}",
                expected="task.source reasoning_gym",
                fix="choose a reward that compares answers, such as exact_answer or math_verify",
            )


class RewardSuite:
    """Scores completions with every configured reward; isolated ones in workers, which start as soon as it is made.

    A context manager: leaving it ends the workers.
    """

    def __init__(self, rewards: list[RewardConfig], workers: int = 1, log: str | os.PathLike[str] | None = None):
        """``workers``: processes that share the isolated rewards. ``log``: a file for what those print.

        Raises: UserError, as :func:`check_rewards`.
        """
        check_rewards(rewards)
        self.labels = [config.label for config in rewards]
        self._direct: dict[str, Callable[[Prompt, str], float]] = {}
        self._isolated: list[str] = []
        self._pool: WorkerPool | None = None
        isolated = []
        for config in rewards:
            reward = None if ":" in config.reward else find(config.reward)
            if reward is None or reward.is_isolated(config.params):
                isolated.append(config)
            else:
                self._direct[config.label] = partial(reward.score, options=config.params)
        if isolated:
            from pipeline.rewards.workers import IsolatedReward, WorkerPool

            self._isolated = [config.label for config in isolated]
            wanted = [IsolatedReward(c.label, c.reward, dict(c.params), c.time_limit) for c in isolated]
            self._pool = WorkerPool(wanted, workers, log)

    def wait_ready(self) -> None:
        """Wait until the workers have imported what they need. Raises: UserError where a user's module fails to."""
        if self._pool is not None:
            self._pool.wait_ready()

    def score(self, prompts: list[Prompt], texts: list[list[str]]) -> Scores:
        """Score the completions ``texts[p]`` of each prompt; a text that repeats within a prompt is scored once.

        Raises: UserError where a user's module can't be imported; StageFailed where workers can't be started.
        """
        assert len(prompts) == len(texts), f"{len(prompts)} prompts, {len(texts)} groups of completions"
        started = time.monotonic()
        items: dict[tuple[str, str], tuple[Prompt, str]] = {}
        for prompt, group in zip(prompts, texts, strict=True):
            for text in group:
                items.setdefault((prompt.id, text), (prompt, text))
        outcomes = self._score_isolated(list(items.values()))
        for label, function in self._direct.items():
            outcomes[label] = [_attempt(function, prompt, text) for prompt, text in items.values()]
        place = {key: i for i, key in enumerate(items)}
        components: dict[str, list[list[float]]] = {}
        kinds: dict[str, dict[str, int]] = {label: {} for label in self.labels}
        examples: dict[str, str] = {}
        for label in self.labels:
            components[label] = []
            for prompt, group in zip(prompts, texts, strict=True):
                scores = []
                for text in group:
                    outcome = outcomes[label][place[prompt.id, text]]
                    if isinstance(outcome, tuple):
                        kind, message = outcome
                        kinds[label][kind] = kinds[label].get(kind, 0) + 1
                        examples.setdefault(label, message)
                        outcome = math.nan
                    scores.append(outcome)
                components[label].append(scores)
        errors = {label: sum(counts.values()) for label, counts in kinds.items()}
        return Scores(components, errors, kinds, examples, time.monotonic() - started)

    def _score_isolated(self, items: list[tuple[Prompt, str]]) -> dict[str, list[float | tuple[str, str]]]:
        if self._pool is None:
            return {}
        # Prompt by prompt, so that a prompt is sent along once for all its completions and rewards.
        jobs = [(which, prompt, text) for prompt, text in items for which in range(len(self._isolated))]
        scored = self._pool.score(jobs)
        results: list[float | tuple[str, str]] = [r if isinstance(r, float) else (r.kind, r.message) for r in scored]
        return {label: results[which :: len(self._isolated)] for which, label in enumerate(self._isolated)}

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> RewardSuite:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _attempt(function: Callable[[Prompt, str], float], prompt: Prompt, text: str) -> float | tuple[str, str]:
    try:
        return function(prompt, text)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"[:300]
