"""The batches that a stage trains on: groups that a policy samples and rewards score."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import PipelineConfig, SamplingConfig, StageConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rewards.scoring import rewarded
from gradus.pipeline.rollouts.builtin import DrawKey
from gradus.pipeline.rollouts.sampler import BUILT_IN, Sampler
from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.tasks.prompts.memory import PromptMemory
from gradus.pipeline.training.learner.groups import groups_of, joined, regathered, uniform_groups, uniform_share
from gradus.pipeline.types import Prompt, Rollouts, State


@dataclass
class Batches:
    """Base class: produces one scored batch per step."""

    metrics: dict[str, float] = field(default_factory=dict, init=False)
    """Metrics of the last batch: seconds, errors of rewards and what the subclass adds."""
    failures: dict[str, str] = field(default_factory=dict, init=False)
    """label of a reward -> the message of its first failure so far."""
    cost: SamplingCost = field(default_factory=lambda: SamplingCost(), init=False)
    """The cost of the last batch."""

    def batch(self, step: int) -> Rollouts:
        """The next batch, of step ``step``: a function of the run's seed, the stage, the step, the policy and what
        :meth:`state` says."""
        raise NotImplementedError

    def state(self) -> State:
        """What the next batch depends on besides the step and the policy as it is now."""
        return {}

    def restore(self, state: State, step: int) -> None:
        """Continue from :meth:`state`; ``step`` is the next step."""

    def drop(self, step: int) -> None:
        """Discard a batch that is being sampled, because the policy was rolled back. ``step`` is the next step."""

    def close(self) -> None:
        """Stop sampling in the background."""


@dataclass(frozen=True)
class SamplingCost:
    """Completions and tokens that were sampled for a batch, including groups that were dropped."""

    rollouts: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, parts: list[Rollouts]) -> SamplingCost:
        """Count the completions of these batches and their tokens."""
        return cls(sum(p.truncated_PK.numel() for p in parts), sum(int(p.mask_PKT.sum()) for p in parts))


class BatchNotNeeded(Exception):
    """Raised in the sampling thread when its batch is no longer needed (roll-back or shutdown)."""


@dataclass
class SampledBatches(Batches):
    """K completions of each prompt, sampled from a policy and scored."""

    policy: Policy
    schedule: Schedule
    suite: RewardSuite
    pipeline: PipelineConfig
    stage: StageConfig
    salt: str = ""
    """Part of the sampling key: gives a second policy other random draws for the same prompts and step."""
    return_prompt_states: bool = False
    """Record the hidden state at each prompt's end."""
    refills: int = 0
    """How many times uniform groups are replaced by groups of further prompts; 0 keeps them."""
    ranks: Ranks = ALONE
    """The processes that share the prompts."""
    sampler: Sampler = BUILT_IN
    """The engine that generates completions."""
    rewards_only: bool = False
    """Whether only the rewards of a batch are needed."""
    memory: PromptMemory | None = None
    """Where every group that is scored is remembered, those that refills drop included."""
    cancelled: bool = False
    """Set by another thread to end the sampling at the next group."""

    def batch(self, step: int) -> Rollouts:
        """Sample and score the scheduled prompts; with ``refills``, further prompts replace uniform groups."""
        size, drawn, kept = self.stage.prompts_per_step, list[Rollouts](), list[Rollouts]()
        metrics, missing = dict[str, float](), size
        self.schedule.begin(step)
        for attempt in range(self.refills + 1):
            part = self.of(self.schedule.take(size), step, f":refill-{attempt}" if attempt else "")
            if self.memory is not None:
                self.memory.add(part, step)
            self.schedule.met(part)
            drawn.append(part)
            metrics = {name: metrics.get(name, 0.0) + value for name, value in self.metrics.items()}
            if self.refills:
                useful = (~uniform_groups(part)).nonzero()[:missing, 0].tolist()
                kept.append(groups_of(part, useful))
                missing -= len(useful)
            if not (self.refills and missing):
                break
        self.metrics, self.cost = metrics | self.schedule.metrics, SamplingCost.of(drawn)
        if not self.refills:
            return drawn[0]
        self.metrics |= _refilled(drawn, size - missing)
        # If every group is uniform, the step keeps one of them, which gives no gradient.
        return joined(kept) if missing < size else groups_of(drawn[0], [0])

    def of(self, prompts: list[Prompt], step: int, more_salt: str = "") -> Rollouts:
        """Groups of these prompts. Each rank samples and scores its share, and all ranks receive the whole.

        ``time/reward`` is the time that scoring added, ``time/reward_hidden`` the time that it ran beside sampling;
        with several ranks each is the longest.
        """
        share = self.ranks.share(prompts)
        with self.sampler.weights_of(self.policy, self.ranks):
            found = self.ranks.gathered(self._of(share, step, more_salt) if share else None)
        parts = [part for part in found if part is not None]
        by_rank, self.metrics = [metrics for _, metrics, _ in parts], {}
        for name in by_rank[0]:
            values = [metrics[name] for metrics in by_rank]
            self.metrics[name] = max(values) if name.startswith("time/") else sum(values)
        for _, _, failures in reversed(parts):
            self.failures = failures | self.failures
        rollouts = regathered([rollouts for rollouts, _, _ in parts])
        self.cost = SamplingCost.of([rollouts])
        return rollouts

    def _of(
        self, prompts: list[Prompt], step: int, more_salt: str
    ) -> tuple[Rollouts, dict[str, float], dict[str, str]]:
        """Groups of this rank's prompts, the metrics of sampling and scoring, and the first failure of each reward."""
        began = time.perf_counter()
        draw = DrawKey(self.pipeline.seed, self.stage.label + self.salt + more_salt, step)
        size, options = self.stage.group_size, sampling_of(self.pipeline, self.stage)
        with self.suite.begin() as scoring:

            def on_group(index: int, texts: list[str]) -> None:
                if self.cancelled:
                    raise BatchNotNeeded
                scoring.add(prompts[index], texts)

            rollouts = self.sampler(
                self.policy, prompts, size, options, draw, self.return_prompt_states, on_group, self.rewards_only
            )
            scores = scoring.join(prompts, rollouts.texts)
        metrics = {
            "time/sample": time.perf_counter() - began - scores.seconds,
            "time/reward": scores.seconds,
            "time/reward_hidden": scores.hidden,
        }
        metrics |= {f"reward_errors/{label}": float(count) for label, count in scores.errors.items()}
        metrics |= self.sampler.metrics
        if rollouts.prompt_states_PD is not None:
            rollouts = replace(rollouts, prompt_states_PD=rollouts.prompt_states_PD.cpu())
        return rewarded(rollouts, scores, self.pipeline), metrics, scores.examples

    def state(self) -> State:
        remembered = {"memory": self.memory.state()} if self.memory is not None else {}
        return self.schedule.state() | remembered

    def restore(self, state: State, step: int) -> None:
        if self.memory is not None:
            self.memory.restore(state.get("memory"))
        self.schedule.restore(state)


def _refilled(drawn: list[Rollouts], kept: int) -> dict[str, float]:
    """Metrics of refilling. Reward and uniform share describe all groups that were sampled, not only those kept."""
    everything = joined(drawn)
    assert everything.rewards_PK is not None and everything.valid_PK is not None
    groups = len(everything.prompts)
    return {
        "reward/mean": float(everything.rewards_PK[everything.valid_PK].mean()),
        "group/uniform_share": uniform_share(uniform_groups(everything), everything.valid_PK),
        "refill/rounds": float(len(drawn) - 1),
        "refill/dropped_groups": float(groups - kept),
        "refill/rollouts_per_kept": everything.truncated_PK.numel() / max(kept * everything.truncated_PK.shape[1], 1),
    }


def sampling_of(pipeline: PipelineConfig, stage: StageConfig) -> SamplingConfig:
    """The stage's own sampling options, or the pipeline's."""
    return stage.sampling or pipeline.sampling
