"""The loop that every algorithm shares. No algorithm has a name here; a stage is one pure function and declared values.

One step, and the object that does each part of it:

    sample, score   batches       groups of completions with their rewards (batches.py; prefetch.py: one step ahead)
    prepare         learned       what a reference, teachers and masks say of them (learned.py, other_policies.py)
    weigh           learned       the stage's function of the signals it declared (learned.py, signals.py)
    update          learned       weighted log-likelihood, backward, optimizer (learner/)
    log             log           curves, costs and progress (progress.py)
    switch          stopping      rules that end a stage early, and the collapse guard (early_stopping.py)
    checkpoint      checkpoints   all that an exact resume needs (checkpoints.py)

Signals of the operating system wait for the end of a step (interrupts.py).
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.training.checkpoints import StageCheckpoints
from gradus.pipeline.training.early_stopping import EarlyStopping, RuleEvent, stopped_by_guard
from gradus.pipeline.training.evaluation import evaluate
from gradus.pipeline.training.interrupts import Interrupts
from gradus.pipeline.training.learned import Learned
from gradus.pipeline.training.learner.learner import Weigh
from gradus.pipeline.training.progress import Progress, StepLog
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.types import Rollouts, State


class Trainer:
    """Trains one stage. ``train`` leaves the policy as it should be handed over."""

    def __init__(self, setup: Setup):
        self.setup, self.config = setup, setup.config
        schedule = setup.schedule()
        self.batches = setup.batches(schedule)
        self.learned = Learned(setup, schedule)
        self.log, self.progress = StepLog(setup), Progress(**setup.spent)
        self.stopping = EarlyStopping(setup.config)
        self.checkpoints = StageCheckpoints(setup)
        self.interrupts = Interrupts(setup.ranks)
        if setup.resume_from is not None:
            self._resume(setup.resume_from)
        elif setup.carried is not None:
            self.learned.carry_over(setup.carried)

    def train(self) -> Path:
        """Run every step that is left, or until a rule ends the stage; returns the checkpoint to hand over.

        Raises: Interrupted after a signal, once the step in hand is done and kept; StageFailed where the guard stops
        the stage, or too many updates in a row were not finite.
        """
        with contextlib.closing(self.batches):
            self._measure_start()
            with self.interrupts.deferred():
                while self.progress.step < self.config.steps and self.stopping.end is None:
                    metrics = self._train_step(self.progress.step + 1)
                    self._switch(metrics)
                    leaving = self.interrupts.requested()
                    if leaving or self.checkpoints.due(self.progress.step):
                        self._save()
                    if leaving:
                        self.interrupts.leave()
                return self._hand_over()

    def _train_step(self, step: int) -> dict[str, float]:
        """One step, from prompts to an update and its curves; returns its metrics."""
        self.log.begin()
        self.learned.begin(step)
        rollouts = self.batches.batch(step)  # sample groups of completions, and score them
        rollouts = self.learned.prepared(rollouts, step)  # ask other policies what the stage needs of them
        weigh = self.learned.weigher(rollouts, step)  # weigh each completion: the only line that differs
        metrics, weights = self._update(rollouts, step, weigh)  # push log-probabilities by these weights
        self.progress.step = step
        return self.log.step(self.progress, rollouts, weights, metrics, self.batches, self.learned.signals)

    def _update(self, rollouts: Rollouts, step: int, weigh: Weigh) -> tuple[dict[str, float], Tensor]:
        """Update the policy. Raises: StageFailed, after the last good weights have been kept."""
        try:
            self.progress.meet(rollouts, self.config.max_skipped, self.batches.failures)
            return self.learned.update(rollouts, step, weigh)
        except StageFailed as error:
            raise StageFailed(f"{error} They are kept in {self._save()}") from None

    def _switch(self, metrics: dict[str, float]) -> None:
        """Ask the rules whether the stage should end, or go back, after this step and after an evaluation, where one is
        due."""
        step, every = self.progress.step, self.config.eval_every
        last = step == self.config.steps
        event = self.stopping.after_step(step, metrics, self.setup.ranks.same(self.progress.spent), last)
        last = last or event is not None
        if every and (step % every == 0 or last):
            correct, others = self._validate()
            event = (self.stopping.after_evaluation(step, correct, last, others) if correct else None) or event
        if event is not None:
            self._act(event)
        if step in self.stopping.kept or event is not None:
            self._save()

    def _act(self, event: RuleEvent) -> None:
        """Record and show an event; roll back to the best checkpoint where the event says so and the stage continues.

        Steps, curves and prompts go on after a roll-back: none is counted or drawn a second time.
        """
        self.stopping.record(event)
        journal, events = self.setup.journal, self.stopping.events
        journal.metrics(event.step, {f"switch/{event.rule}": 1.0})
        journal.tags({"gradus.events": "\n".join(f"step {e.step}: {e.reason}" for e in events)})
        self.setup.observer.note(f"{self.config.label}: step {event.step}, {event.action}: {event.reason}")
        self.setup.observer.rule_acted(self.config.label, asdict(event))
        if event.action == "slower":
            assert self.stopping.best is not None
            self.learned.roll_back(self.checkpoints.whole(self.stopping.best.step), self.stopping.rate_factor)
            self.batches.drop(self.progress.step + 1)

    def _measure_start(self) -> None:
        """Where the best checkpoint is kept, the stage's start is the first best one."""
        if self.stopping.keeps_best and self.stopping.best is None:
            self.stopping.begin(*([], {}) if self.stopping.by_reward else self._validate())
            self._save()

    def _validate(self) -> tuple[list[float], dict[str, list[float]]]:
        """1 for each validation prompt that is answered correctly, 0 for others; empty where none could be scored.

        Those of the tasks that the stage trains on, and by name those of tasks that it only watches. None of them is a
        held-out prompt.
        """
        setup, prompts = self.setup, self.setup.tasks.prompts("validation")
        whole = evaluate(setup.policy, prompts, setup.suite, setup.pipeline, setup.ranks, setup.sampler)
        evaluation, by_task = whole.of(setup.shares), {name: whole.of({name}) for name in setup.tasks if name}
        if evaluation.accuracy is None:
            setup.observer.note(f"{self.config.label}, validation prompts: {evaluation.problem()}")
            return [], {}
        shares = {f"validation/accuracy/{name}": part.accuracy for name, part in by_task.items()}
        curves = {name: share for name, share in shares.items() if share is not None}
        setup.journal.metrics(self.progress.step, {"validation/accuracy": evaluation.accuracy, **curves})
        return evaluation.correct, {n: part.correct for n, part in by_task.items() if n not in setup.shares}

    def _save(self) -> Path:
        """Write a checkpoint of the present state, unless there is one."""
        return self.checkpoints.save(self.progress.step, self._state, self.stopping.kept)

    def _state(self) -> State:
        state: State = {"progress": self.progress.state(), **self.learned.state()}
        return state | {"source": self.batches.state(), "switches": self.stopping.state()}

    def _resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this stage as if nothing had happened since."""
        state = self.learned.restore(checkpoint)
        self.progress = Progress(**state["progress"])
        self.stopping.restore(state["switches"])
        self.learned.learner.rate_factor = self.stopping.rate_factor
        self.batches.restore(state["source"], self.progress.step + 1)

    def _hand_over(self) -> Path:
        """The checkpoint that the next stage starts from, whose weights the policy has afterwards."""
        last, end = self._save(), self.stopping.end
        if end is not None and end.action == "stop":
            best = self.stopping.best
            kept = self.checkpoints.folder(best.step if best is not None else 0)
            raise StageFailed(stopped_by_guard(self.config, end, kept, self.setup.folder.parents[1]))
        chosen = self.stopping.handed_over(self.progress.step)
        if chosen == self.progress.step:
            return last
        folder = self.checkpoints.whole(chosen, for_resume=self.setup.policy.adapters is not None)
        self.learned.restore_weights(folder)
        return folder
