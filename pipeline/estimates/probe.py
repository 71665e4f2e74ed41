"""Measure a policy on a task without training it: sample groups, score them twice, and time a step of the learner."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.estimates.diagnosis import Diagnosis, Group, diagnose
from gradus.pipeline.policy.devices import autocasts
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite, Scores
from gradus.pipeline.rewards.scoring import rewarded
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.tasks.prompt_order import PromptStream
from gradus.pipeline.tasks.task import TaskData
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.types import Prompt, Rollouts

LABEL = "probe"
"""The label for prompts and draws; it is no stage's, so that a probe has other draws than any stage."""
DEMONSTRATIONS = 256
"""The number of demonstrations whose mean length is taken."""


@dataclass(frozen=True)
class Speed:
    """The speed and memory measured for this policy on this machine, from which costs are estimated."""

    sample_tokens_per_second: float
    """Completion tokens that the sampler draws in batches of the size of a stage's."""
    score_seconds: float
    """Seconds that scoring adds for one completion."""
    update_tokens_per_second: float
    """Completion tokens that an update processes: forward, backward and the optimizer's step."""
    update_seconds: float
    """Seconds of one step of the learner."""
    peak_bytes: int
    """Peak memory, of this process on a CPU and of the device elsewhere. It includes one copy of the weights beside the
    trained ones, their gradients and both of Adam's moments."""
    weight_bytes: int
    """One copy of the weights."""
    demonstration_tokens: float | None
    """Mean length of the task's demonstrations; None where it has none."""


@dataclass(frozen=True)
class Probe:
    """The result of a probe."""

    diagnosis: Diagnosis
    groups: list[Group]
    """The scored completions that the diagnosis was made from."""
    speed: Speed
    policy: dict[str, object]
    """The result of :meth:`gradus.pipeline.policy.policy.Policy.describe`."""
    seconds: float
    failures: dict[str, str]
    """label of a reward -> the message of its first failure."""


def probe(
    policy: Policy,
    task: TaskData,
    config: PipelineConfig,
    stage: StageConfig,
    ranking: list[str],
    prompts: int,
    samples: int,
    on_group: Callable[[], None] = lambda: None,
    log: Path | None = None,
) -> Probe:
    """Sample ``samples`` completions of ``prompts`` training prompts and say what they tell.

    ``stage`` is the one whose batch size, sampling options and learner are timed; ``ranking`` the keys to look at;
    ``on_group`` hears of each group that has been sampled; rewards print into ``log``.
    Raises: UserError where no completion can be scored.
    """
    began = time.perf_counter()
    options = stage.sampling or config.sampling
    prompts = min(prompts, len(task.train))
    size = max(1, round(stage.prompts_per_step * stage.group_size / samples))  # a stage's batch, in completions
    taken = PromptStream(task.train, config.seed, LABEL).at(0, prompts)
    groups: list[Group] = []
    first: Rollouts | None = None
    tokens, sampling, scoring, failures = [], [], [], dict[str, str]()
    with RewardSuite(config.rewards, config.reward_workers, log) as suite:
        suite.wait_ready()
        for start in range(0, prompts, size):
            batch = taken[start : start + size]
            rollouts, scores, seconds = _sampled(policy, batch, samples, options, config, suite, start, on_group)
            scored, again = rewarded(rollouts, scores, config), suite.score(batch, rollouts.texts)
            groups += _groups(scored, rewarded(rollouts, again, config), config)
            first = first or scored
            failures = scores.examples | failures
            tokens.append(int(rollouts.lengths_PK.sum()))
            sampling.append(seconds)
            scoring.append(scores.seconds)
    assert first is not None
    if not any(math.isfinite(a + b) for group in groups for a, b in zip(group.rewards, group.correct, strict=True)):
        label, said = next(iter(failures.items()))
        raise UserError("no completion could be scored", where=f"rewards, {label}", got=said, fix="correct the reward")
    skipped = 1 if len(sampling) > 1 else 0  # the first batch also finds out how to sample this model
    update_seconds, update_tokens = _timed_update(policy, first, stage, config)
    speed = Speed(
        sample_tokens_per_second=sum(tokens[skipped:]) / sum(sampling[skipped:]),
        score_seconds=sum(scoring) / (prompts * samples),
        update_tokens_per_second=update_tokens / update_seconds,
        update_seconds=update_seconds,
        peak_bytes=_peak_bytes(policy.device),
        weight_bytes=sum(p.numel() * p.element_size() for p in policy.model.parameters()),
        demonstration_tokens=_demonstration_tokens(policy, task),
    )
    diagnosis = diagnose(groups, ranking, options.max_tokens)
    return Probe(diagnosis, groups, speed, policy.describe(), time.perf_counter() - began, failures)


def _sampled(
    policy: Policy,
    batch: list[Prompt],
    samples: int,
    options: object,
    config: PipelineConfig,
    suite: RewardSuite,
    start: int,
    on_group: Callable[[], None],
) -> tuple[Rollouts, Scores, float]:
    """One batch, its scores, and the seconds that sampling took; isolated rewards score during sampling."""
    began = time.perf_counter()
    with suite.begin() as scoring:

        def ended(index: int, texts: list[str]) -> None:
            scoring.add(batch[index], texts)
            on_group()

        rollouts = sample(policy, batch, samples, options, DrawKey(config.seed, LABEL, start), on_group=ended)  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        return rollouts, scoring.join(batch, rollouts.texts), seconds


def _groups(scored: Rollouts, again: Rollouts, config: PipelineConfig) -> list[Group]:
    """The rollouts as plain numbers."""
    rewards, rewards_again = _rewards(scored), _rewards(again)
    correct, correct_again = _correct(scored, config), _correct(again, config)
    lengths, truncated = scored.lengths_PK.tolist(), scored.truncated_PK.tolist()
    components = {label: values.tolist() for label, values in scored.components.items()}
    return [
        Group(
            rewards[p], rewards_again[p], correct[p], correct_again[p], lengths[p], truncated[p],
            {label: values[p] for label, values in components.items()},
        )
        for p in range(len(scored.prompts))
    ]  # fmt: skip


def _rewards(scored: Rollouts) -> list[list[float]]:
    """Rewards, NaN where scoring failed."""
    assert scored.rewards_PK is not None and scored.valid_PK is not None
    return torch.where(scored.valid_PK, scored.rewards_PK, torch.nan).tolist()


def _correct(scored: Rollouts, config: PipelineConfig) -> list[list[float]]:
    """1 or 0 by the reward that decides on accuracy, NaN where it failed."""
    assert scored.correct_PK is not None
    values = scored.components[config.accuracy_reward]
    return torch.where(values.isnan(), values, scored.correct_PK.to(values.dtype)).tolist()


def _timed_update(policy: Policy, batch: Rollouts, stage: StageConfig, config: PipelineConfig) -> tuple[float, int]:
    """Seconds of one step of the real learner on a copy of the policy, and the completion tokens of that step.

    The weights of the rows are 1 and -1 in turn, so that no row is left out. The first of three steps, which also
    creates Adam's moments, does not count; the other two are averaged.
    """
    model = copy.deepcopy(policy.model).requires_grad_(True)
    trained = Policy(model, policy.tokenizer, policy.template)
    options = stage.sampling or config.sampling
    once, autocast = stage.model_copy(update={"updates_per_batch": 1}), autocasts(policy, config.policy)
    learner = Learner(trained, once, options.temperature, autocast)
    rows = batch.truncated_PK.numel()
    weights: Tensor = (1.0 - 2.0 * (torch.arange(rows) % 2)).view(batch.truncated_PK.shape)
    batch = replace(batch, rewards_PK=weights)
    taken = []
    for step in (1, 2, 3):
        began = time.perf_counter()
        learner.update(batch, step, lambda update, groups: weights[groups])
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return fmean(taken[1:]), int(batch.lengths_PK.sum())


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _demonstration_tokens(policy: Policy, task: TaskData) -> float | None:
    if not task.has_demonstrations:
        return None
    shown = task.prompts(task.train, range(min(DEMONSTRATIONS, len(task.train))))
    return fmean(len(policy.encode_completion(prompt.demonstration or "")) for prompt in shown)
