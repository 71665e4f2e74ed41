"""The profile of a stage's prompts: what the policy that the stage starts from makes of each, before the first step.

All training prompts of the stage are answered in parts of about as many completions as a step samples. Each part
leaves its records, with the step 0, in the stage's memory of prompts, and then a small record of how far the profile
has come, so that one that was killed goes on behind its last whole part. What is drawn for a prompt is a function of
seed, stage, prompt and completion: it does not matter how often the profile was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.config.checks import profile_size
from gradus.pipeline.runs.run_folder import PROFILE_FILE
from gradus.pipeline.tasks.prompt_order import PromptStream, Schedule
from gradus.pipeline.tasks.prompts.memory import PromptMemory, read_rows
from gradus.pipeline.tasks.prompts.rates import parted, pooled
from gradus.pipeline.training.batches import SampledBatches
from gradus.pipeline.training.interrupts import Interrupts
from gradus.pipeline.training.progress import Progress
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.types import Prompt, State

NOTE_SECONDS = 60.0
"""Time between two lines about the progress of a profile."""


def profiled(setup: Setup) -> Setup:
    """The setup of a stage that goes by a profile of its prompts, once it is complete; that of any other as it is.

    Raises: Interrupted after a signal, once the part in hand is done and kept; StageFailed where nothing can be scored.
    """
    if not profile_size(setup.config):
        return setup
    if setup.resume_from is not None:  # the profile was complete before, and the checkpoint vouches for its records
        return replace(setup, earlier={setup.config.label: parted(read_rows(setup.memory.path))[0]})
    profile = _Profile(setup)
    profile.complete()
    spent = profile.progress.state() | {"unscored": 0}
    found = replace(setup, earlier={setup.config.label: profile.memory.rows}, spent=spent)
    found.memory.restore(profile.memory.state())
    return found


class _Profile:
    """A profile in the making."""

    def __init__(self, setup: Setup):
        self.setup, self.label, self.samples = setup, setup.config.label, profile_size(setup.config)
        self.tasks = list(setup.tasks.only(setup.shares).values())
        self.total = sum(len(task.train) for task in self.tasks)
        self.memory = PromptMemory(setup.memory.path, setup.ranks.leads)
        self.file = setup.folder / PROFILE_FILE
        self.progress = self._continued(setup.ranks.same(self._state()))
        """What was spent so far."""

    def complete(self) -> None:
        """Answer the prompts that are left."""
        setup, done = self.setup, self.memory.count
        if done < self.total:
            begun = f", after {done:,} that are done" if done else ""
            what = f"{self.samples:,} completions of each of {self.total:,} prompts"
            setup.observer.note(f"{self.label}: before the first step, {what} for their pass rates{begun}")
        batches, interrupts = self._batches(), Interrupts(setup.ranks)
        began = noted = time.perf_counter()
        with interrupts.deferred():
            for prompts in self._parts():
                self._answer(batches, prompts)
                if interrupts.requested():
                    interrupts.leave()
                now, answered = time.perf_counter(), self.memory.count
                if now - noted >= NOTE_SECONDS and answered < self.total:
                    noted, rate = now, (answered - done) / (now - began)
                    left = max(1, round((self.total - answered) / rate / 60))
                    shown = f"{answered:,} of {self.total:,} prompts profiled, {rate:.3g} a second"
                    setup.observer.note(f"{self.label}: {shown}, about {left:,} min left")
        setup.ranks.meet()  # what rank 0 wrote last can be read
        self._tell()

    def _parts(self) -> Iterator[list[Prompt]]:
        """The prompts that are left, task after task, in parts of about as many completions as a step samples."""
        config, before = self.setup.config, 0
        size = max(1, config.prompts_per_step * config.group_size // self.samples)
        for task in self.tasks:
            end = before + len(task.train)
            while self.memory.count < end:
                begin = self.memory.count - before
                yield task.prompts(task.train, range(begin, min(begin + size, len(task.train))))
            before = end

    def _batches(self) -> SampledBatches:
        """What samples and scores the groups; the order of the prompts is this object's."""
        setup, task = self.setup, self.tasks[0]
        schedule = Schedule(PromptStream(task.train, setup.pipeline.seed, self.label, task.given))
        sampled = setup.sampled(schedule, setup.policy, salt=":profile", rewards_only=True)
        return replace(sampled, stage=setup.config.model_copy(update={"group_size": self.samples}))

    def _answer(self, batches: SampledBatches, prompts: list[Prompt]) -> None:
        """Sample, score and remember the groups of a part. Raises: StageFailed, OSError."""
        rollouts = batches.of(prompts, 0)
        self.memory.add(rollouts, 0)
        self.progress.rollouts += batches.cost.rollouts
        self.progress.tokens += batches.cost.tokens
        try:
            self.progress.meet(rollouts, self.setup.config.max_skipped, batches.failures)
        except StageFailed as error:
            raise StageFailed(f"profile of the prompts: {error}") from None
        self.memory.sync()
        if self.setup.ranks.leads:
            write_sealed(self.file, {"memory": self.memory.state(), "spent": self.progress.state()})

    def _state(self) -> State:
        """How far an earlier launch has come; nothing where there is no such record, or a damaged one."""
        try:
            return read_sealed(self.file) or {}
        except UserError as error:
            self.setup.observer.note(f"{self.label}: {error.what}; the prompts are profiled anew")
            return {}

    def _continued(self, state: State) -> Progress:
        """Continue from such a state. Where the records are not those that it counted, begin anew."""
        try:
            self.memory.restore(state.get("memory"))
            return Progress(**state.get("spent", {}))
        except StageFailed as error:
            self.setup.observer.note(f"{self.label}: {error}; the prompts are profiled anew")
            self.memory.restore(None)
            return Progress()

    def _tell(self) -> None:
        """The journal and the user learn what was found, and what it cost."""
        known, spent = pooled(self.memory.rows), self.progress.spent
        shares: dict[str, Any] = {"never": (known.rate == 0).sum(), "always": (known.rate == 1).sum()}
        told = ", ".join(f"{int(count):,} {often}" for often, count in shares.items())
        scored = known.valid > 0
        mean = f"{known.rate[scored].mean():.3f}" if scored.any() else "none"
        cost = f"{spent['rollouts']:,} completions, {spent['tokens']:,} tokens, {spent['seconds']:.0f} s"
        self.setup.observer.note(
            f"{self.label}: profile of {len(known.key):,} prompts, mean pass rate {mean}, solved {told} ({cost})"
        )
        metrics = {f"profile/{name}": float(spent[name]) for name in ("rollouts", "tokens")}
        metrics |= {"profile/pass_rate": float(known.rate[scored].mean())} if scored.any() else {}
        self.setup.journal.metrics(0, metrics | {"time/profile": spent["seconds"]})
