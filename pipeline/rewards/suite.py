"""All the rewards of a pipeline together: they take a batch of completions and give the scores of every component."""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.process import usable_cores
from gradus.pipeline.common.shown import visible
from gradus.pipeline.rewards.registry import check_options, find
from gradus.pipeline.rewards.user_functions import check_function, reference_of
from gradus.pipeline.types import NO_THOUGHTS, Prompt, Thoughts

if TYPE_CHECKING:
    from gradus.pipeline.config import RewardConfig
    from gradus.pipeline.rewards.workers.pool import WorkerPool

INSTALL = {"math_verify": "math-verify[antlr4_13_2]", "reasoning_gym": "reasoning-gym"}
"""Package -> what to install."""

MOST_WORKERS = 4
"""Worker processes where the configuration names no number; each may hold a library of 100 MB or more."""


@dataclass(frozen=True)
class Scores:
    """The scores of P x K completions."""

    components: dict[str, list[list[float]]]
    """label -> P lists of K scores, in the reward's range; NaN where the reward failed, or is none of the task's."""
    errors: dict[str, int]
    """label -> completions it failed on; every label is there."""
    kinds: dict[str, dict[str, int]]
    """label -> kind of failure (``timeout``, ``crash``, ``error``) -> completions; only what happened."""
    examples: dict[str, str]
    """label -> message of the first failure; only labels that failed."""
    seconds: float
    """Wall-clock time from the join to the last score."""
    hidden: float
    """Seconds before the join in which isolated rewards were at work on this batch."""


Outcome = float | tuple[str, str]
"""A score, or (kind of failure, what it said)."""
Item = tuple[str, str, str]
"""A completion to score: (task, id of the prompt, text)."""


def check_rewards(rewards: list[RewardConfig], source: str | None = None, key: str = "rewards") -> None:
    """Raise UserError for a reward that can't score: name, options, regular expressions, functions, packages.

    None of the user's code is run. ``source`` is the task's: reasoning_gym's scorers need its prompts. ``key``: where
    in the configuration they stand.
    """
    for i, config in enumerate(rewards):
        where = f"{key}.{i}"
        reference = reference_of(config.reward, where)
        _check_variables(config, f"{where}.env", reference is not None)
        if reference is not None:
            check_function(reference, config.params, where)
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


def _check_variables(config: RewardConfig, where: str, own: bool) -> None:
    """Raise UserError for a variable of the environment that the reward declares and can't get."""
    for name in config.env:
        if not own:
            what = f"the reward {config.reward} of the library needs no variables of the environment"
            raise UserError(what, where=where, got=name, fix="leave it out")
        if not name.isidentifier():  # NAME=VALUE, perhaps, and so not shown
            what = "this is not the name of an environment variable"
            raise UserError(what, where=where, expected="the name alone, without its value")
        if name not in os.environ:
            what = f"the reward {config.reward} needs {name}, which is not in the environment"
            raise UserError(what, where=where, fix=f"export {name}=... before the command, or leave it out of `env`")


class RewardSuite:
    """Scores completions with every configured reward; isolated ones in workers, which start as soon as it is made.

    A context manager: leaving it ends the workers.
    """

    def __init__(
        self,
        rewards: list[RewardConfig] | Mapping[str, list[RewardConfig]],
        workers: int | None = None,
        log: str | os.PathLike[str] | None = None,
        shared_by: int = 1,
        thoughts: Thoughts = NO_THOUGHTS,
    ):
        """``rewards``: those of every task, by the task's name; a list where there is one task.

        ``workers``: processes that share the isolated rewards; None: all cores but one, at most four. Where so many
        suites are at work at once, each has its share of them.

        ``log``: a file for what those print. ``thoughts``: how the policy marks what it thinks.

        Raises: UserError, as :func:`check_rewards`.
        """
        by_task = rewards if isinstance(rewards, Mapping) else {"": rewards}
        distinct: list[RewardConfig] = []
        self._of_task: dict[str, dict[str, int]] = {}
        """task -> label -> the scorer's number: tasks may have equal rewards, or others of the same label."""
        for task, configs in by_task.items():
            check_rewards(configs)
            distinct += [config for config in configs if config not in distinct]
            self._of_task[task] = {config.label: distinct.index(config) for config in configs}
        self.labels = list(dict.fromkeys(label for known in self._of_task.values() for label in known))
        self._direct: dict[int, Callable[[Prompt, str], float]] = {}
        self._isolated: list[int] = []
        self._pool: WorkerPool | None = None
        isolated = []
        for number, config in enumerate(distinct):
            reference = reference_of(config.reward)
            reward = find(config.reward) if reference is None else None
            if reward is None or reward.is_isolated(config.params):
                self._isolated.append(number)
                isolated.append((config, reference or config.reward))
            else:
                self._direct[number] = partial(reward.score, options=config.params, thoughts=thoughts)
        if isolated:
            from gradus.pipeline.rewards.workers.pool import IsolatedReward, WorkerPool

            wanted = [
                IsolatedReward(c.label, name, dict(c.params), c.time_limit, (*c.env,), thoughts) for c, name in isolated
            ]
            total = workers or min(MOST_WORKERS, max(1, usable_cores() - 1))
            self._pool = WorkerPool(wanted, max(1, total // shared_by), log)

    def wait_ready(self) -> None:
        """Wait until the workers have imported what they need. Raises: UserError where a user's module fails to."""
        if self._pool is not None:
            self._pool.wait_ready()

    def score(self, prompts: list[Prompt], texts: list[list[str]]) -> Scores:
        """Score the completions ``texts[p]`` of each prompt, all at once. Raises: as :meth:`Scoring.join`."""
        with self.begin() as scoring:
            return scoring.join(prompts, texts)

    def begin(self) -> Scoring:
        """A batch whose groups are handed over one by one while others are still being sampled."""
        return Scoring(self.labels, self._of_task, self._direct, self._isolated, self._pool)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> RewardSuite:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Scoring:
    """One batch being scored. A context manager: leaving it gives up what has not been joined.

    Isolated rewards work in their processes as soon as a group is added; the others score at the join, where they do
    not delay the sampler. The result depends on neither the order nor the time of the additions.
    """

    def __init__(
        self,
        labels: list[str],
        of_task: dict[str, dict[str, int]],
        direct: dict[int, Callable[[Prompt, str], float]],
        isolated: list[int],
        pool: WorkerPool | None,
    ):
        self._labels, self._of_task, self._direct, self._isolated = labels, of_task, direct, isolated
        self._batch = None if pool is None else pool.open()
        self._adding = threading.Lock()
        self._items: dict[Item, tuple[Prompt, str]] = {}  # a text that repeats in a group is scored once
        self._jobs: list[tuple[Item, int]] = []
        """What the workers were given: the item and the scorer's number."""

    def add(self, prompt: Prompt, texts: list[str]) -> None:
        """Hand over completions of a prompt, from any thread; returns at once."""
        with self._adding:
            items = [(prompt.task, prompt.id, text) for text in dict.fromkeys(texts)]
            new = [item for item in items if item not in self._items]
            self._items |= {item: (prompt, item[2]) for item in new}
            if self._batch is None:
                return
            # Side by side, so that a prompt is sent along once for all its completions and rewards.
            wanted = set(self._of_task[prompt.task].values())
            places = [(place, number) for place, number in enumerate(self._isolated) if number in wanted]
            self._jobs += [(item, number) for item in new for _, number in places]
            self._batch.submit([(place, prompt, text) for *_, text in new for place, _ in places])

    @property
    def waiting(self) -> bool:
        """Whether isolated rewards have still to score something that was added."""
        return self._batch is not None and self._batch.waiting

    def join(self, prompts: list[Prompt], texts: list[list[str]]) -> Scores:
        """The scores of the completions ``texts[p]`` of each prompt, whether they were added before or not.

        Raises: UserError where a user's module can't be imported; StageFailed where workers can't be started.
        """
        assert len(prompts) == len(texts), f"{len(prompts)} prompts, {len(texts)} groups of completions"
        began = time.monotonic()
        hidden = self._batch.worked() if self._batch is not None else 0.0
        for prompt, group in zip(prompts, texts, strict=True):
            self.add(prompt, group)
        outcomes: dict[tuple[Item, int], Outcome] = {}
        for item, (prompt, text) in self._items.items():
            for number in self._of_task[prompt.task].values():
                if (score := self._direct.get(number)) is not None:
                    outcomes[item, number] = _attempt(score, prompt, text)
        if self._batch is not None:
            scored = [r if isinstance(r, float) else (r.kind, r.message) for r in self._batch.join()]
            outcomes |= dict(zip(self._jobs, scored, strict=True))
        return self._in_order(prompts, texts, outcomes, began, hidden)

    def _in_order(
        self,
        prompts: list[Prompt],
        texts: list[list[str]],
        outcomes: dict[tuple[Item, int], Outcome],
        began: float,
        hidden: float,
    ) -> Scores:
        """The outcomes of the distinct completions in the order of the batch, with the failures counted."""
        components: dict[str, list[list[float]]] = {label: [] for label in self._labels}
        kinds: dict[str, dict[str, int]] = {label: {} for label in self._labels}
        examples: dict[str, str] = {}
        for label in self._labels:
            for prompt, group in zip(prompts, texts, strict=True):
                number = self._of_task[prompt.task].get(label)
                scores = []
                for text in group:
                    outcome = math.nan if number is None else outcomes[(prompt.task, prompt.id, text), number]
                    if isinstance(outcome, tuple):
                        kind, message = outcome
                        kinds[label][kind] = kinds[label].get(kind, 0) + 1
                        examples.setdefault(label, message)
                        outcome = math.nan
                    scores.append(outcome)
                components[label].append(scores)
        errors = {label: sum(counts.values()) for label, counts in kinds.items()}
        return Scores(components, errors, kinds, examples, time.monotonic() - began, hidden)

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._batch is not None:
            self._batch.drop()


def _attempt(function: Callable[[Prompt, str], float], prompt: Prompt, text: str) -> Outcome:
    try:
        return function(prompt, text)
    except Exception as error:
        return "error", visible(f"{type(error).__name__}: {error}"[:300])
