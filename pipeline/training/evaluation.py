"""Held-out accuracy: one greedy completion a prompt, with its 95 % interval."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from gradus.pipeline.common.process import usable_cores
from gradus.pipeline.common.ranks import ALONE, Ranks, interleaved
from gradus.pipeline.config import PipelineConfig, SamplingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite, Scores, Scoring
from gradus.pipeline.rollouts.sampler import BUILT_IN, Sampler
from gradus.pipeline.statistics.intervals import share_bounds
from gradus.pipeline.types import Prompt

PARTS = 2
"""Parts that the prompts are sampled in."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation on a set of prompts."""

    seconds: float
    answers: list[tuple[Prompt, str]]
    """Each prompt with the completion."""
    correct: list[float]
    """1 for each prompt whose completion is correct, 0 for the others, in the prompts' order."""
    failed: list[bool]
    """Whether the verifier failed on a prompt's completion; it counts as not correct where others could be scored."""
    components: dict[str, list[list[float]]] = field(default_factory=dict)
    """label of a reward -> P lists of one score; NaN where the reward failed, or is none of the task's."""
    failure: str = ""
    """What the verifier said where it failed first."""

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.answers)

    @property
    def errors(self) -> int:
        """Number of completions whose verifier failed."""
        return sum(self.failed)

    @property
    def accuracy(self) -> float | None:
        """Share of prompts whose completion is correct; None where no completion could be scored."""
        return sum(self.correct) / self.prompts if self.errors < self.prompts else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the accuracy, if there is one."""
        return share_bounds(int(sum(self.correct)), self.prompts) if self.errors < self.prompts else None

    def of(self, tasks: Collection[str]) -> Evaluation:
        """The part on the prompts of some tasks."""
        rows = [row for row, (prompt, _) in enumerate(self.answers) if prompt.task in tasks]

        def chosen(values: list[Any]) -> list[Any]:
            return [values[row] for row in rows]

        components = {label: chosen(values) for label, values in self.components.items()}
        parts = (chosen(self.answers), chosen(self.correct), chosen(self.failed))
        return Evaluation(self.seconds, *parts, components, self.failure)

    def by_prompt(self) -> dict[str, bool]:
        """id of a prompt (of several tasks ``TASK/id``) -> whether its completion is correct: what a paired comparison
        of two policies needs."""
        return {key: one > 0 for key, one in zip(self._keys(), self.correct, strict=True)}

    def answered(self) -> dict[str, tuple[bool, str]]:
        """The same with each completion: (correct, text)."""
        given = zip(self.correct, self.answers, strict=True)
        return {key: (one > 0, text) for key, (one, (_, text)) in zip(self._keys(), given, strict=True)}

    def _keys(self) -> list[str]:
        return [f"{prompt.task}/{prompt.id}" if prompt.task else prompt.id for prompt, _ in self.answers]

    def record(self) -> dict[str, Any]:
        """The part that is stored in a checkpoint's record."""
        return {"accuracy": self.accuracy, "interval": self.interval and [*self.interval], "prompts": self.prompts}

    def by_task(self) -> dict[str, dict[str, Any]]:
        """name -> record, of each task."""
        return {task: self.of({task}).record() for task in dict.fromkeys(prompt.task for prompt, _ in self.answers)}

    def problem(self) -> str:
        """One sentence about the completions that could not be scored; empty where there are none."""
        if not self.errors:
            return ""
        outcome = "they count as wrong" if self.accuracy is not None else "there is no accuracy"
        return f"{self.errors:,} of {self.prompts:,} completions could not be scored, so {outcome}: {self.failure}"


def evaluate(
    policy: Policy,
    prompts: list[Prompt],
    suite: RewardSuite,
    pipeline: PipelineConfig,
    ranks: Ranks = ALONE,
    sampler: Sampler = BUILT_IN,
) -> Evaluation:
    """Accuracy of the policy on ``prompts``, by what their tasks say is correct. Each rank answers its share."""
    began = time.perf_counter()
    share = ranks.share(prompts)
    with sampler.weights_of(policy, ranks):
        found = ranks.gathered(_answered(policy, share, suite, pipeline, ranks.size, sampler) if share else None)
    parts = [part for part in found if part is not None]
    texts = interleaved([texts for texts, _ in parts])
    components = {label: interleaved([s.components[label] for _, s in parts]) for label in parts[0][1].components}
    judgements = {task: pipeline.judgement(task) for task in {prompt.task for prompt in prompts}}
    deciding = [judgements[prompt.task] for prompt in prompts]
    values = [components[each.accuracy_reward][row][0] for row, each in enumerate(deciding)]
    labels = list(dict.fromkeys(each.accuracy_reward for each in deciding))
    return Evaluation(
        seconds=time.perf_counter() - began,
        answers=[(prompt, group[0]) for prompt, group in zip(prompts, texts, strict=True)],
        components=components,
        correct=[float(each.evaluation.is_correct(value)) for each, value in zip(deciding, values, strict=True)],
        failed=[math.isnan(value) for value in values],
        failure=next((s.examples[label] for label in labels for _, s in parts if label in s.examples), ""),
    )


def _answered(
    policy: Policy,
    prompts: list[Prompt],
    suite: RewardSuite,
    pipeline: PipelineConfig,
    processes: int,
    sampler: Sampler,
) -> tuple[list[list[str]], Scores]:
    """One completion of each prompt, with its scores."""
    with suite.begin() as scoring:
        texts = _greedy(policy, prompts, pipeline.sampling, scoring, processes, sampler)
        return texts, scoring.join(prompts, texts)


def _greedy(
    policy: Policy, prompts: list[Prompt], options: SamplingConfig, scoring: Scoring, processes: int, sampler: Sampler
) -> list[list[str]]:
    """One greedy completion of each prompt, as P lists of one text; isolated rewards score them at the same time.

    The prompts are always cut into the same parts, so that nothing depends on whether two threads share them or one
    takes both. Two threads are used where there are cores for them: PyTorch releases the interpreter lock inside its
    operations, and on 2 cores two threads of one core each took about 0.6 of the time of one, while two
    intra-operation threads gained nothing on a small model. A GPU takes about as long for a part as for all prompts, so
    there it is one part.
    """
    count = PARTS if policy.device.type == "cpu" else 1
    parts = [prompts[n::count] for n in range(min(count, len(prompts)))]
    policy.encode_prompt(prompts[0])  # a tokenizer may change itself the first time, with one thread only

    def answer(part: list[Prompt]) -> list[list[str]]:
        def on_group(index: int, group: list[str]) -> None:
            scoring.add(part[index], group)

        return sampler(policy, part, 1, options, None, on_group=on_group, without_logprobs=True).texts

    fit = processes * PARTS * torch.get_num_threads() <= usable_cores()
    with ThreadPoolExecutor(len(parts) if fit else 1, thread_name_prefix="evaluation") as threads:
        return interleaved(list(threads.map(answer, parts)))
