"""The checkpoints of a stage that trains: when one is due, how all ranks write it, and how an earlier one is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.files import beside
from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, damaged_files, prune, save_checkpoint
from gradus.pipeline.training.learner.shards import SHARDS, write_shards
from gradus.pipeline.training.learner.state_files import spread_tensors, write_state
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.types import State

WRITING_SHARE = 0.05
"""Largest share of a stage's time that checkpoints by the clock may take."""


class StageCheckpoints:
    """Writes the checkpoints of one stage and finds them again."""

    def __init__(self, setup: Setup):
        self.setup, self.options = setup, setup.pipeline.checkpoints
        self.newest = setup.resume_from
        """The newest checkpoint that holds the present state, or the one that the stage resumed from."""
        self._cost, self._written = 0.0, time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after this step, on which all ranks agree.

        By steps; or by the clock, but never for more than a small share of the time.
        """
        if self.options.every_steps is not None:
            due = step % self.options.every_steps == 0
        else:
            waited = time.perf_counter() - self._written
            due = waited >= max(self.options.every_seconds, self._cost / WRITING_SHARE)
        return self.setup.ranks.any(due)

    def save(self, step: int, state_now: Callable[[], State], kept: Collection[int]) -> Path:
        """Write a checkpoint of everything as it is now, once a step, and remove those that the keep rule does not
        hold; steps in ``kept`` stay. Every rank calls this, and writes what only it has."""
        setup, folder = self.setup, self.folder(step)
        if self.newest == folder:
            return folder
        began, state, aside = time.perf_counter(), state_now(), beside(folder, SHARDS)
        spread = write_shards(aside, spread_tensors(state), setup.ranks)

        def write(resume: Path) -> None:
            setup.journal.sync()  # the curves up to here are as safe as the weights
            setup.memory.sync()
            setup.completions.sync()
            setup.rollout_record.sync()
            write_state(resume, state)
            if spread:
                aside.rename(resume / SHARDS)

        if setup.ranks.leads:
            save_checkpoint(setup.policy, folder, setup.config.label, step, setup.parent, setup.fingerprint, write)
            prune(setup.folder, step, self.options.keep, set(kept))
        setup.ranks.meet()
        self.newest = folder
        self._cost, self._written = time.perf_counter() - began, time.perf_counter()
        setup.journal.metrics(step, {"time/checkpoint": self._cost})
        return folder

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would lie."""
        return self.setup.folder / CHECKPOINTS / f"step-{step:06d}"

    def whole(self, step: int, for_resume: bool = True) -> Path:
        """The checkpoint of an earlier step. Raises: StageFailed where it is damaged."""
        folder = self.folder(step)
        if damaged := damaged_files(folder, for_resume=for_resume):
            run, label = self.setup.folder.parents[1], self.setup.config.label
            again = f"`{gradus_command('resume', run.name, '--from', label, runs=run.parent)}` trains the stage again"
            raise StageFailed(f"the best checkpoint, {folder}, is damaged ({', '.join(damaged)}); {again}")
        return folder
