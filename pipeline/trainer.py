"""THE loop: sample a group, score it, weigh each completion, push its log-probability; no algorithm has a name here."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pipeline import interruption
from pipeline.checkpoint import CHECKPOINTS, RESUME, damaged_files, prune, read_record, save_checkpoint
from pipeline.config import CheckpointConfig, PipelineConfig, StageConfig
from pipeline.errors import StageFailed
from pipeline.evaluation import evaluate
from pipeline.journal import Journal
from pipeline.learner import Learner, Weigh, batch_logprobs
from pipeline.losses import kl_estimate
from pipeline.metrics import advantage_metrics, finite, rollout_metrics
from pipeline.observer import Observer
from pipeline.overlap import OneAhead
from pipeline.policy import Policy, copy_parameters, load_policy, parameters
from pipeline.rewards import RewardSuite
from pipeline.schedule import HistoryResampling, Schedule
from pipeline.signals import SignalProvider, frozen_copy
from pipeline.sources import Demonstrations, SampledGroups, Source, sampling_of
from pipeline.stage import Stage
from pipeline.tasks import PromptStream, TaskData
from pipeline.training_state import State, read_state, write_state
from pipeline.types import Prompt, Rollouts

WRITING_SHARE = 0.05
"""Largest share of a stage's time that checkpoints by the clock may take."""


@dataclass
class Progress:
    """How far a stage has come; what a resume starts from."""

    step: int = 0
    """Steps done."""
    rollouts: int = 0
    """Completions trained on or sampled so far, those of a reference policy included."""
    tokens: int = 0
    """Their completion tokens."""
    seconds: float = 0.0
    """Training time behind the last checkpoint."""
    reached: bool = False
    """Whether ``stop_at`` was reached."""
    best_step: int | None = None
    """The checkpoint with the highest accuracy on the validation prompts, where the stage chooses by that."""
    best_accuracy: float = -1.0


class Timer:
    """When the next checkpoint is due: by steps, or by the clock but never for more than a small share of the time."""

    def __init__(self, config: CheckpointConfig):
        self.config, self.cost, self.since = config, 0.0, time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after this step."""
        if self.config.every_steps is not None:
            return step % self.config.every_steps == 0
        return time.perf_counter() - self.since >= max(self.config.every_seconds, self.cost / WRITING_SHARE)

    def wrote(self, seconds: float) -> None:
        """One was written, and took this long."""
        self.cost, self.since = seconds, time.perf_counter()


@dataclass
class Trainer:
    """Everything one stage trains with. ``train`` leaves the policy as it should be handed over."""

    policy: Policy
    """The parent's policy."""
    stage: Stage
    config: StageConfig
    pipeline: PipelineConfig
    task: TaskData
    suite: RewardSuite
    journal: Journal
    observer: Observer
    folder: Path
    """The stage's folder; checkpoints lie in it."""
    parent: str
    """Content hash of the checkpoint that the policy came from."""
    fingerprint: str
    """Hash of the stage's identity, written into each checkpoint."""
    carried: State | None = None
    """The parent's state, of which a stage that begins takes over what ``config.carry`` names."""
    resume_from: Path | None = None
    """A whole checkpoint of this very stage to go on from."""
    progress: Progress = field(default_factory=Progress, init=False)

    def __post_init__(self) -> None:
        self.needs = self.stage.needs(self.config)
        sampling = sampling_of(self.pipeline, self.config)
        stream = PromptStream(self.task.train, self.pipeline.seed, self.config.label)
        schedule = HistoryResampling(stream) if self.needs.resample else Schedule(stream)
        self.source: Source
        if self.needs.completions == "demonstrations":
            self.source = Demonstrations(self.policy, schedule, self.config)
        else:
            sampled_by = frozen_copy(self.policy) if self.config.async_ else self.policy
            groups = SampledGroups(sampled_by, schedule, self.suite, self.pipeline, self.config)
            groups.want_states = self.needs.critic is not None and self.needs.critic.kind == "prompt"
            groups.refills = self.needs.refills
            self.source = OneAhead(groups, self.policy) if self.config.async_ else groups

        def groups_from(policy: Policy) -> SampledGroups:
            return SampledGroups(policy, schedule, self.suite, self.pipeline, self.config, salt=":reference")

        autocast = {"auto": self.policy.device.type == "cuda", "off": False, "bfloat16": True}
        self.signals = SignalProvider(self.needs, self.config, self.policy, sampling, groups_from)
        self.learner = Learner(
            self.policy, self.config, sampling.temperature, autocast[self.pipeline.policy.autocast], self.needs
        )
        self.temperature = sampling.temperature
        measures_kl = self.config.kl_every > 0 and self.needs.completions == "policy"
        self.start = frozen_copy(self.policy) if measures_kl else None
        self.timer, self.began = Timer(self.pipeline.checkpoints), time.perf_counter()
        self._told: set[str] = set()
        if self.resume_from is not None:
            self._resume(self.resume_from)
        elif self.carried is not None:
            if "optimizer" in self.config.carry:
                self.learner.take_moments(self.carried["learner"])
            if "critic" in self.config.carry:
                self.signals.take_critic(self.carried["signals"])

    def train(self) -> Path:
        """Run every step that is left, or until ``stop_at`` is reached; returns the checkpoint to hand over.

        Raises: Interrupted after a signal, once the step in hand is done and kept.
        """
        with contextlib.closing(self.source):
            self._train()
        last = self._save()
        if self.progress.best_step in (None, self.progress.step):
            return last
        best = self._checkpoint(self.progress.best_step)
        if damaged := damaged_files(best, for_resume=False):
            again = f"`gradus resume RUN --from {self.config.label}` trains the stage anew"
            raise StageFailed(f"the best checkpoint, {best}, is damaged ({', '.join(damaged)}); {again}")
        copy_parameters(parameters(load_policy(best, self.pipeline.policy)), self.policy)
        return best

    def _train(self) -> None:
        """The loop."""
        if self.config.handover == "best" and self.progress.best_step is None:
            self._keep_best(self._accuracy())
        while self.progress.step < self.config.steps and not self.progress.reached:
            with interruption.deferred():
                self._train_step()
                self._validate()
                if interruption.requested() or self.timer.due(self.progress.step):
                    self._save()
            interruption.leave_if_requested()

    def _train_step(self) -> None:
        """One batch: from prompts to an update and its curves."""
        began = time.perf_counter()
        step = self.progress.step + 1
        torch.manual_seed(self.pipeline.seed + step)  # whatever draws from the global generator repeats after a resume
        self.signals.begin(step)
        rollouts = self.source.batch(step)
        weigh = self._weigher(rollouts, step)
        sampled = time.perf_counter()
        try:
            metrics, step_weights = self.learner.update(rollouts, step, weigh)
        except StageFailed as error:
            raise StageFailed(f"{error} They are kept in {self._save()}") from None
        metrics["time/update"] = time.perf_counter() - sampled
        self.progress.step = step
        self._log(step, rollouts, step_weights, metrics, began)

    def _weigher(self, rollouts: Rollouts, step: int) -> Weigh:
        """The weights of groups at an update: the stage's pure function, and 0 for completions nobody could score."""
        signals = self.signals.of(rollouts, step)
        assert rollouts.valid_PK is not None
        valid_PK = rollouts.valid_PK

        def weigh(update: int, groups: list[int]) -> Tensor:
            weights, valid = self.stage.weigh(signals(update, groups), self.config), valid_PK[groups]
            return weights * (valid if weights.dim() == 2 else valid[..., None])

        return weigh

    def _validate(self) -> None:
        """Every ``eval_every`` steps: is this the best so far, and is it good enough?"""
        step, every = self.progress.step, self.config.eval_every
        if not every or (step % every and step < self.config.steps):
            return
        accuracy = self._accuracy()
        if self.config.stop_at is not None and accuracy >= self.config.stop_at:
            self.progress.reached = True
            self.observer.note(f"{self.config.label}: {accuracy:.3f} on the validation prompts, stopping at {step}")
        if self.config.handover == "best" and accuracy > self.progress.best_accuracy:
            self._keep_best(accuracy)

    def _accuracy(self) -> float:
        """Accuracy on the validation prompts, never on those that are reported."""
        evaluation = evaluate(self.policy, all_prompts(self.task, "validation"), self.suite, self.pipeline)
        self.journal.metrics(self.progress.step, {"validation/accuracy": evaluation.accuracy})
        return evaluation.accuracy

    def _keep_best(self, accuracy: float) -> None:
        self.progress.best_step, self.progress.best_accuracy = self.progress.step, accuracy
        self._save()

    def _checkpoint(self, step: int | None) -> Path:
        return self.folder / CHECKPOINTS / f"step-{step:06d}"

    def _save(self) -> Path:
        """Checkpoint everything as it is now, once a step, and remove what the keep rule does not hold."""
        folder, step = self._checkpoint(self.progress.step), self.progress.step
        if self.resume_from == folder:
            return folder
        began = time.perf_counter()

        def write(resume: Path) -> None:
            self.journal.sync()  # the curves up to here are as safe as the weights
            progress = asdict(self.progress) | {"seconds": self.seconds}
            state = {"progress": progress, "learner": self.learner.state(), "signals": self.signals.state()}
            state["source"] = self.source.state()
            write_state(resume, state)

        save_checkpoint(self.policy, folder, self.config.label, step, self.parent, self.fingerprint, write)
        self.resume_from = folder
        best = self.progress.best_step
        prune(self.folder, step, self.pipeline.checkpoints.keep, set() if best is None else {best})
        self.timer.wrote(time.perf_counter() - began)
        self.journal.metrics(step, {"time/checkpoint": self.timer.cost})
        return folder

    def _resume(self, checkpoint: Path) -> None:
        """Take over the weights and the state of a checkpoint of this stage."""
        assert read_record(checkpoint).parent == self.parent, "a stage goes on from its own checkpoints"
        copy_parameters(parameters(load_policy(checkpoint, self.pipeline.policy)), self.policy)
        state = read_state(checkpoint / RESUME)
        self.progress = Progress(**state["progress"])
        self.learner.restore(state["learner"])
        self.signals.restore(state["signals"])
        self.source.restore(state["source"], self.progress.step + 1)

    @property
    def seconds(self) -> float:
        """Training time so far, that before a resume included."""
        return self.progress.seconds + time.perf_counter() - self.began

    def _log(self, step: int, rollouts: Rollouts, weights: Tensor, metrics: dict[str, float], began: float) -> None:
        """Curves to the journal, progress to the observer."""
        costs = (self.source.cost, self.signals.cost)
        self.progress.rollouts += sum(cost.rollouts for cost in costs)
        step_tokens = sum(cost.tokens for cost in costs)
        self.progress.tokens += step_tokens
        metrics |= rollout_metrics(rollouts) | advantage_metrics(weights) | self.source.metrics | self.signals.metrics
        if self.start is not None and step % self.config.kl_every == 0:
            reference = batch_logprobs(self.start, rollouts, self.temperature, self.config.token_budget)
            metrics["policy/kl_to_start"] = kl_estimate(rollouts.rollout_logprobs_PKT, reference, rollouts.mask_PKT)
        metrics |= {"progress/rollouts": self.progress.rollouts, "progress/tokens": self.progress.tokens}
        metrics["time/stage"], metrics["time/step"] = self.seconds, time.perf_counter() - began
        metrics["throughput/tokens_per_second"] = step_tokens / metrics["time/step"]
        self.journal.metrics(step, metrics)
        every = self.pipeline.tracking.histogram_every
        if every and step % every == 0:
            self.journal.histogram(step, "advantage", weights.flatten().tolist())
        for label, example in self.source.failures.items():
            if label not in self._told:
                self._told.add(label)
                self.observer.note(
                    f"the reward {label} failed on a completion, which therefore gets no weight: {example}"
                )
        self.observer.step_done(self.config.label, step, self.config.steps, finite(metrics))


def all_prompts(task: TaskData, split: str) -> list[Prompt]:
    """Every prompt of a split."""
    dataset = getattr(task, split)
    return task.prompts(dataset, range(len(dataset)))
