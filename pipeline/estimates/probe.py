"""Measure a policy on a task without training it: sample groups, score them twice, and time a step of the learner."""

from __future__ import annotations

import contextlib
import copy
import math
import resource
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, SamplingConfig, StageConfig
from gradus.pipeline.config.tasks import template_arguments
from gradus.pipeline.estimates.diagnosis import Diagnosis, Group, diagnose
from gradus.pipeline.estimates.pace import CHUNK_SHARE, LEAST_PROMPTS, Pace, Plan, Watch, timed_prompt
from gradus.pipeline.policy.devices import autocasts
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.thoughts import asked_thoughts
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rewards.scoring import rewarded
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.tasks.data import Tasks
from gradus.pipeline.tasks.prompt_order import PromptStream, Schedule
from gradus.pipeline.tasks.several.mixture import MixedSchedule
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
    planned: int
    """The number of prompts that were to be sampled."""
    ended: Literal["seconds", "interrupt"] | None
    """Why fewer were sampled: the time was over, or an interrupt came; None if all were."""


def probe(
    policy: Policy,
    tasks: Tasks,
    config: PipelineConfig,
    stage: StageConfig,
    ranking: list[str],
    prompts: int,
    samples: int,
    seconds: float = math.inf,
    watch: Watch | None = None,
    log: Path | None = None,
) -> Probe:
    """Sample ``samples`` completions of ``prompts`` training prompts and say what they tell.

    ``stage`` is the one whose batch size, sampling options and learner are timed; ``ranking`` the keys to look at;
    rewards print into ``log``. After ``seconds``, or after an interrupt, there are fewer prompts.
    Raises: UserError where no completion can be scored; Interrupted where an interrupt came before LEAST_PROMPTS.
    """
    began, watch = time.perf_counter(), watch or Watch()
    options = stage.sampling or config.sampling
    shares, tasks = config.shares(stage), tasks.asked(config.asked(stage))
    prompts = min(prompts, sum(len(tasks[name].train) for name in shares))
    size = max(1, round(stage.prompts_per_step * stage.group_size / samples))  # a stage's batch, in completions
    streams = {name: PromptStream(tasks[name].train, config.seed, LABEL, tasks[name].given) for name in shares}
    parts = {name: Schedule(stream) for name, stream in streams.items()}
    taken, config = MixedSchedule(parts, shares).take(prompts), config.in_stage(stage)
    thoughts = asked_thoughts(policy.template.thoughts, policy.prompts, template_arguments(config))
    scored_by = RewardSuite(config.rewards_by_task, config.reward_workers, log, thoughts=thoughts)
    with contextlib.ExitStack() as deferring, scored_by as suite:
        suite.wait_ready()
        each = timed_prompt(policy, taken[:size], samples, options, DrawKey(config.seed, LABEL, 0))
        plan = Plan(prompts, samples, each, seconds)
        watch.planned(plan)
        sampling = _Sampling(policy, config, stage, suite, watch, plan)
        sampling.run(taken, Pace(plan, size, began), deferring)
        return _found(sampling, tasks.only(shares), ranking, began)


def _found(sampling: _Sampling, tasks: Tasks, ranking: list[str], began: float) -> Probe:
    """What the samples tell. Raises: UserError where none could be scored."""
    groups, update, policy, plan = sampling.groups, sampling.update, sampling.policy, sampling.plan
    if update is None:
        label, said = next(iter(sampling.failures.items()))
        raise UserError("no completion could be scored", where=f"rewards, {label}", got=said, fix="correct the reward")
    speed = Speed(
        sample_tokens_per_second=sampling.tokens / sampling.seconds,
        score_seconds=sampling.score_seconds / (len(groups) * plan.samples),
        update_tokens_per_second=update[1] / update[0],
        update_seconds=update[0],
        peak_bytes=_peak_bytes(policy.device),
        weight_bytes=sum(p.numel() * p.element_size() for p in policy.model.parameters()),
        demonstration_tokens=_demonstration_tokens(policy, tasks),
    )
    diagnosis, seconds = diagnose(groups, ranking, sampling.options.max_tokens), time.perf_counter() - began
    ended = None if len(groups) == plan.prompts else "interrupt" if interruption.requested() else "seconds"
    return Probe(diagnosis, groups, speed, policy.describe(), seconds, sampling.failures, plan.prompts, ended)


@dataclass
class _Sampling:
    """What a probe has sampled and timed so far."""

    policy: Policy
    config: PipelineConfig
    stage: StageConfig
    suite: RewardSuite
    watch: Watch
    plan: Plan
    groups: list[Group] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    score_seconds: float = 0.0
    update: tuple[float, int] | None = None
    """Seconds of a step of the learner, and its completion tokens; None as long as no completion could be scored."""

    @property
    def options(self) -> SamplingConfig:
        """The sampling options of the stage."""
        return self.stage.sampling or self.config.sampling

    def run(self, taken: list[Prompt], pace: Pace, deferring: contextlib.ExitStack) -> None:
        """Sample chunk after chunk, until all is sampled, the time is over, or an interrupt waits.

        A completion's draws depend on its prompt's batch and not on its chunk. The learner is timed after the first
        chunk, so that what remains of the time is known, and so that a report can follow at once when sampling ends.
        Interrupts are deferred (in ``deferring``) from the chunk on with which there is enough to report.
        """
        least = min(LEAST_PROMPTS, self.plan.prompts)
        while not interruption.requested() and (count := pace.next(len(self.groups))):
            began, start = time.perf_counter(), len(self.groups)
            if start < least <= start + count:
                deferring.enter_context(interruption.deferred())
            scored = self._chunk(taken[start : start + count], start // pace.size * pace.size)
            pace.sampled(count, time.perf_counter() - began)
            if self.update is None and any(map(_has_scores, self.groups[start:])):
                enough = self.plan.seconds * CHUNK_SHARE
                self.update = _timed_update(self.policy, scored, self.stage, self.config, enough)
        if len(self.groups) < least:
            interruption.leave()

    def _chunk(self, batch: list[Prompt], key: int) -> Rollouts:
        """Sample and score completions of these prompts. Isolated rewards score during sampling."""
        began = time.perf_counter()
        with self.suite.begin() as scoring:

            def ended(index: int, texts: list[str]) -> None:
                scoring.add(batch[index], texts)
                self.watch.group_sampled()

            draw = DrawKey(self.config.seed, LABEL, key)
            rollouts = sample(self.policy, batch, self.plan.samples, self.options, draw, on_group=ended)
            self.seconds += time.perf_counter() - began
            scores = scoring.join(batch, rollouts.texts)
        again = self.suite.score(batch, rollouts.texts)
        scored = rewarded(rollouts, scores, self.config)
        self.groups += _groups(scored, rewarded(rollouts, again, self.config), self.config)
        self.failures = scores.examples | self.failures
        self.tokens += int(rollouts.lengths_PK.sum())
        self.score_seconds += scores.seconds
        return scored


def _has_scores(group: Group) -> bool:
    return any(math.isfinite(a + b) for a, b in zip(group.rewards, group.correct, strict=True))


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
    deciding = [config.judgement(prompt.task).accuracy_reward for prompt in scored.prompts]
    values = torch.stack([scored.components[label][row] for row, label in enumerate(deciding)])
    return torch.where(values.isnan(), values, scored.correct_PK.to(values.dtype)).tolist()


def _timed_update(
    policy: Policy, batch: Rollouts, stage: StageConfig, config: PipelineConfig, enough: float
) -> tuple[float, int]:
    """Seconds of one step of the real learner on a copy of the policy, and the completion tokens of that step.

    The weights of the rows are 1 and -1 in turn, so that no row is left out. The first of three steps, which also
    creates Adam's moments, does not count; the other two are averaged. It is the only one if it took longer than
    ``enough`` seconds, or if an interrupt waits.
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
        if taken[0] > enough or interruption.requested():
            break
    return fmean(taken[1:] or taken), int(batch.lengths_PK.sum())


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _demonstration_tokens(policy: Policy, tasks: Tasks) -> float | None:
    task = next((task for task in tasks.values() if task.has_demonstrations), None)
    if task is None:
        return None
    shown = task.prompts(task.train, range(min(DEMONSTRATIONS, len(task.train))))
    return fmean(len(policy.encode_completion(prompt.demonstration or "")) for prompt in shown)
