"""What a stage trains with, and the batches and the schedule that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import PipelineConfig, SamplingConfig, StageConfig
from gradus.pipeline.policy.policy import Policy, frozen_copy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.sampler import BUILT_IN, Sampler
from gradus.pipeline.runs.sampled.record import ROLLOUTS_FILE, RolloutRecord
from gradus.pipeline.stage import Needs, Stage
from gradus.pipeline.tasks.data import TaskData, Tasks
from gradus.pipeline.tasks.prompt_order import HistoryResampling, PromptStream, Schedule
from gradus.pipeline.tasks.prompts.completions import COMPLETIONS_FILE, KeptCompletions
from gradus.pipeline.tasks.prompts.curriculum import Curriculum
from gradus.pipeline.tasks.prompts.memory import MEMORY_FILE, PromptMemory
from gradus.pipeline.tasks.prompts.ordering import ordered
from gradus.pipeline.tasks.prompts.selection import Earlier, selected
from gradus.pipeline.tasks.several.mixture import MixedSchedule
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.batches import Batches, SampledBatches, sampling_of
from gradus.pipeline.training.given_batches import DemonstrationBatches, PairBatches
from gradus.pipeline.training.other_policies import OtherPolicies
from gradus.pipeline.training.prefetch import PrefetchedBatches
from gradus.pipeline.types import State


@dataclass(frozen=True)
class Setup:
    """Everything that the training of one stage is given. The policy is trained in place."""

    policy: Policy
    """The parent's policy."""
    stage: Stage
    config: StageConfig
    pipeline: PipelineConfig
    """The configuration as it is in this stage."""
    tasks: Tasks
    """The data of the tasks that the stage trains on, and of those that its guard watches."""
    suite: RewardSuite
    journal: Journal
    observer: Observer
    folder: Path
    """The stage's folder; checkpoints lie in it."""
    parent_folder: Path
    """The checkpoint that the policy came from."""
    parent: str
    """The content hash of that checkpoint."""
    fingerprint: str
    """Hash of the stage's identity, written into each checkpoint."""
    carried: State | None = None
    """The parent's state, from which a stage that begins takes over what ``config.carry`` names."""
    resume_from: Path | None = None
    """A whole checkpoint of this stage to resume from; None where the stage begins."""
    earlier: Earlier = field(default_factory=dict)
    """What earlier stages, or a profile, remember of prompts, where the stage chooses its prompts by it."""
    spent: State = field(default_factory=dict)
    """What the stage has spent before its first step, as the state of :class:`Progress`."""
    others: Mapping[str, OtherPolicies] = field(default_factory=dict)
    """option -> the policies that it chooses beside the one that trains."""
    ranks: Ranks = ALONE
    """The processes that train the stage together."""
    sampler: Sampler = BUILT_IN
    """The engine that generates completions."""

    @cached_property
    def needs(self) -> Needs:
        """What the stage declares that it needs, under these options."""
        return self.stage.needs(self.config)

    @property
    def sampling(self) -> SamplingConfig:
        """The stage's own sampling options, or the pipeline's."""
        return sampling_of(self.pipeline, self.config)

    @property
    def shares(self) -> dict[str, float]:
        """name -> share, of the tasks that the stage trains on."""
        return self.pipeline.shares(self.config)

    def schedule(self) -> Schedule:
        """The order in which prompts are trained on, at its beginning."""
        parts = {name: self._schedule_of(self.tasks[name]) for name in self.shares}
        return MixedSchedule(parts, self.shares) if len(parts) > 1 else parts.popitem()[1]

    def _schedule_of(self, task: TaskData) -> Schedule:
        """The order of one task's prompts."""
        needed = max(1, int(self.shares[task.name] * self.config.prompts_per_step))
        left = selected(task.train, self.config, needed, self.earlier)
        for line in left.told if self.resume_from is None else ():
            self.observer.note(f"{task.name}, {line}" if task.name else line)
        stream = PromptStream(left.dataset, self.pipeline.seed, self.config.label, task.given)
        if left.rates is not None:
            assert self.config.curriculum is not None
            return Curriculum(stream, left.rates, self.config.curriculum, self.config.steps)
        stream = ordered(stream, self.config, self.earlier)
        return HistoryResampling(stream, self.memory) if self.needs.resample else Schedule(stream)

    @cached_property
    def memory(self) -> PromptMemory:
        """What was measured of each group that the stage scored."""
        return PromptMemory(self.folder / MEMORY_FILE, self.ranks.leads)

    @cached_property
    def completions(self) -> KeptCompletions:
        """The correct completions that a later stage is to learn from."""
        keeps = self.pipeline.keeps_completions(self.config) if self.ranks.leads else frozenset[str]()
        return KeptCompletions(self.folder / COMPLETIONS_FILE, keeps)

    @cached_property
    def rollout_record(self) -> RolloutRecord:
        """The groups that are kept for a person to read."""
        writes = self.ranks.leads and self.needs.completions == "policy"
        options = (self.pipeline.tracking, self.needs.ranking, writes, self.config.steps)
        return RolloutRecord(self.folder / ROLLOUTS_FILE, *options)

    def finish(self, step: int) -> dict[str, Any]:
        """Keep what the stage, which ends with this step, found out of prompts; returns what vouches for it."""
        kept = {"completions": self.completions.finish()} if self.pipeline.keeps_completions(self.config) else {}
        return {"memory": self.memory.finish(step), **kept}

    def batches(self, schedule: Schedule) -> Batches:
        """The batches of the stage: demonstrations, or groups sampled in step or one step ahead."""
        given = (self.policy, schedule, self.config)
        if self.needs.completions == "demonstrations":
            return DemonstrationBatches(*given)
        if self.needs.completions == "pairs":
            return PairBatches(*given, self.sampling.temperature, self.ranks)
        sampled = self.sampled(schedule, frozen_copy(self.policy) if self.config.async_ else self.policy)
        sampled.return_prompt_states = self.needs.critic is not None and self.needs.critic.kind == "prompt"
        sampled.refills, sampled.memory = self.needs.refills, self.memory
        return PrefetchedBatches(sampled, self.policy) if self.config.async_ else sampled

    def sampled(self, schedule: Schedule, policy: Policy, salt: str = "", rewards_only: bool = False) -> SampledBatches:
        """Groups that ``policy`` samples; ``salt`` sets its draws apart from those of another policy."""
        options = {"ranks": self.ranks, "sampler": self.sampler, "rewards_only": rewards_only}
        return SampledBatches(policy, schedule, self.suite, self.pipeline, self.config, salt, **options)
