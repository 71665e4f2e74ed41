"""THE loop: sample a group, score it, weigh each completion, push its log-probability; no algorithm has a name here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pipeline.checkpoint import save_checkpoint
from pipeline.config import PipelineConfig, StageConfig
from pipeline.errors import StageFailed
from pipeline.evaluation import evaluate
from pipeline.journal import Journal
from pipeline.learner import Learner, batch_logprobs
from pipeline.losses import kl_estimate
from pipeline.metrics import advantage_metrics, finite, rollout_metrics
from pipeline.observer import Observer
from pipeline.policy import Policy, load_policy
from pipeline.rewards import RewardSuite
from pipeline.signals import SignalProvider, frozen_copy
from pipeline.sources import Demonstrations, SampledGroups, Source, sampling_of
from pipeline.stage import Stage
from pipeline.tasks import PromptStream, TaskData
from pipeline.types import Prompt, Rollouts


@dataclass
class Trainer:
    """Everything one stage trains with. ``train`` leaves the policy as it should be handed over."""

    policy: Policy
    stage: Stage
    config: StageConfig
    pipeline: PipelineConfig
    task: TaskData
    suite: RewardSuite
    journal: Journal
    observer: Observer
    checkpoints: Path
    """Folder for this stage's checkpoints."""
    parent: str
    """Content hash of the checkpoint that the policy came from."""
    fingerprint: str
    """Hash of the configuration, written into each checkpoint."""
    rollouts: int = field(default=0, init=False)
    """Completions trained on or sampled so far, those of a reference policy included."""
    tokens: int = field(default=0, init=False)
    """Their completion tokens."""
    step: int = field(default=0, init=False)
    """Steps done."""

    def __post_init__(self) -> None:
        self.needs = self.stage.needs(self.config)
        temperature = sampling_of(self.pipeline, self.config).temperature
        stream = PromptStream(self.task.train, self.pipeline.seed, self.config.label)
        self.source: Source
        if self.needs.completions == "demonstrations":
            self.source = Demonstrations(self.policy, stream, self.config)
        else:
            want_states = self.needs.critic_lr is not None
            self.source = SampledGroups(
                self.policy, stream, self.suite, self.pipeline, self.config, want_states=want_states
            )

        def groups_of(policy: Policy) -> SampledGroups:
            return SampledGroups(policy, stream, self.suite, self.pipeline, self.config, salt=":reference")

        autocast = {"auto": self.policy.device.type == "cuda", "off": False, "bfloat16": True}
        self.signals = SignalProvider(self.needs, self.config, self.policy, temperature, groups_of)
        self.learner = Learner(self.policy, self.config, temperature, autocast[self.pipeline.policy.autocast])
        self.temperature = temperature
        measures_kl = self.config.kl_every > 0 and self.needs.completions == "policy"
        self.start = frozen_copy(self.policy) if measures_kl else None
        self._told: set[str] = set()

    def train(self) -> Path:
        """Run every step, or until ``stop_at`` is reached; returns the checkpoint to hand over."""
        best = (self._accuracy(), self._save()) if self._chooses_best else None
        while self.step < self.config.steps:
            self.step = step = self.step + 1
            began = time.perf_counter()
            self.signals.begin(step)
            rollouts = self.source.batch(step)
            weigh = self._weigher(rollouts, step)
            sampled = time.perf_counter()
            metrics, weights = self._update(rollouts, weigh)
            metrics["time/update"] = time.perf_counter() - sampled
            self._log(step, rollouts, weights, metrics, began)
            if not self.config.eval_every or (step % self.config.eval_every and step < self.config.steps):
                continue
            accuracy = self._accuracy()
            if best is not None and accuracy > best[0]:
                best = accuracy, self._save()
            if self.config.stop_at is not None and accuracy >= self.config.stop_at:
                self.observer.note(f"{self.config.label}: {accuracy:.3f} on the validation prompts, stopping at {step}")
                break
        last = self._save()
        if best is None or best[1] == last:
            return last
        self.policy.model = load_policy(best[1], self.pipeline.policy).model
        return best[1]

    def _weigher(self, rollouts: Rollouts, step: int) -> Callable[[int], Tensor]:
        """The weights of update n of a batch: the stage's pure function, and 0 for completions nobody could score."""
        signals = self.signals.of(rollouts, step)
        assert rollouts.valid_PK is not None
        valid = rollouts.valid_PK

        def weigh(update: int) -> Tensor:
            weights = self.stage.weigh(signals(update), self.config)
            return weights * (valid if weights.dim() == 2 else valid[..., None])

        return weigh

    def _update(self, rollouts: Rollouts, weigh: Callable[[int], Tensor]) -> tuple[dict[str, float], Tensor]:
        """The learner's update; where it gives up, the weights of its last good one are kept and named."""
        try:
            return self.learner.update(rollouts, self.step, weigh)
        except StageFailed as error:
            raise StageFailed(f"{error} They are kept in {self._save()}") from None

    @property
    def _chooses_best(self) -> bool:
        return self.config.handover == "best"

    def _accuracy(self) -> float:
        """Accuracy on the validation prompts, never on those that are reported."""
        evaluation = evaluate(self.policy, all_prompts(self.task, "validation"), self.suite, self.pipeline)
        self.journal.metrics(self.step, {"validation/accuracy": evaluation.accuracy})
        return evaluation.accuracy

    def _save(self) -> Path:
        """Checkpoint the policy as it is now, once a step."""
        folder, step = self.checkpoints / f"step-{self.step:06d}", self.step
        if folder.is_dir():
            return folder
        return save_checkpoint(self.policy, folder, self.config.label, step, self.parent, self.fingerprint)

    def _log(self, step: int, rollouts: Rollouts, weights: Tensor, metrics: dict[str, float], began: float) -> None:
        """Curves to the journal, progress to the observer."""
        passes = 2 if self.needs.reference_rewards else 1
        self.rollouts += rollouts.truncated_PK.numel() * passes
        step_tokens = int(rollouts.mask_PKT.sum()) * passes
        self.tokens += step_tokens
        metrics |= rollout_metrics(rollouts) | advantage_metrics(weights) | self.source.metrics | self.signals.metrics
        if self.start is not None and step % self.config.kl_every == 0:
            reference = batch_logprobs(self.start, rollouts, self.temperature, self.config.token_budget)
            metrics["policy/kl_to_start"] = kl_estimate(rollouts.rollout_logprobs_PKT, reference, rollouts.mask_PKT)
        metrics["time/step"] = time.perf_counter() - began
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
