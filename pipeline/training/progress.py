"""How far a stage has come, and the log of each step: curves, costs, progress and the first failures of rewards."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import frozen_copy
from gradus.pipeline.training.batches import Batches
from gradus.pipeline.training.learner.losses import kl_estimate
from gradus.pipeline.training.metrics import advantage_metrics, finite, rollout_metrics
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.training.signals import SignalProvider
from gradus.pipeline.types import Rollouts, State


class Progress:
    """How far a stage has come; a resume starts from it."""

    def __init__(self, step: int = 0, rollouts: int = 0, tokens: int = 0, seconds: float = 0.0, unscored: int = 0):
        self.step = step
        """Steps done."""
        self.rollouts = rollouts
        """Completions trained on or sampled so far, those of a reference policy included."""
        self.tokens = tokens
        """Tokens of these completions."""
        self.unscored = unscored
        """The newest steps in a row of which no completion could be scored."""
        self._seconds_before, self._began = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far, including that before a resume."""
        return self._seconds_before + time.perf_counter() - self._began

    def meet(self, rollouts: Rollouts, limit: int, failures: Mapping[str, str]) -> None:
        """Count the steps in a row of which no completion could be scored.

        ``failures``: label of a reward -> the message of its first failure. Raises: StageFailed at ``limit``.
        """
        assert rollouts.valid_PK is not None
        unscored = 0 if bool(rollouts.valid_PK.any()) else self.unscored + 1
        if unscored >= limit:
            said = "; ".join(f"{label}: {message}" for label, message in failures.items())
            raise StageFailed(
                f"no completion could be scored in {unscored} steps in a row ({said}); correct the reward. "
                "The weights are those of the last step before."
            )
        self.unscored = unscored

    @property
    def spent(self) -> dict[str, float]:
        """What budgets are compared with."""
        return {"rollouts": self.rollouts, "tokens": self.tokens, "seconds": self.seconds}

    def state(self) -> State:
        """All of it, as plain values: the arguments of the constructor."""
        return {"step": self.step, **self.spent, "unscored": self.unscored}


class StepLog:
    """Writes curves to the journal, and shows progress and the first failure of each reward."""

    def __init__(self, setup: Setup):
        self.setup, self.config = setup, setup.config
        measures_kl = self.config.kl_every > 0 and setup.needs.completions == "policy"
        self.start = frozen_copy(setup.policy) if measures_kl else None
        """The policy of the stage's start, which the KL divergence is measured to."""
        self._shown: set[str] = set()
        self._began, self._padding_told = 0.0, False

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def step(
        self,
        progress: Progress,
        rollouts: Rollouts,
        weights: Tensor,
        metrics: dict[str, float],
        batches: Batches,
        signals: SignalProvider,
    ) -> dict[str, float]:
        """Add the step's costs to ``progress`` and log it. Returns all metrics that are finite."""
        step, costs = progress.step, (batches.cost, signals.cost)
        progress.rollouts += sum(cost.rollouts for cost in costs)
        tokens = sum(cost.tokens for cost in costs)
        progress.tokens += tokens
        metrics |= rollout_metrics(rollouts) | advantage_metrics(weights) | batches.metrics | signals.metrics
        if self.start is not None and step % self.config.kl_every == 0:
            metrics["policy/kl_to_start"] = self._kl_to_start(rollouts)
        metrics |= {"progress/rollouts": progress.rollouts, "progress/tokens": progress.tokens}
        metrics["time/stage"], metrics["time/step"] = progress.seconds, time.perf_counter() - self._began
        metrics["throughput/tokens_per_second"] = tokens / metrics["time/step"]
        self._write(step, metrics, weights)
        self.setup.memory.write(step)
        self.setup.completions.add(rollouts, step)
        if groups := self.setup.rollout_record.add(rollouts, weights, step):
            self.setup.journal.rollouts(step, groups)
        self._show_padding()
        self._show_failures(batches.failures)
        shown = finite(metrics)
        self.setup.observer.step_done(self.config.label, step, self.config.steps, shown)
        return shown

    def _kl_to_start(self, rollouts: Rollouts) -> float:
        """KL divergence of the policy from that of the stage's start, in nats a token."""
        assert self.start is not None
        options = (self.setup.sampling.temperature, self.config.token_budget, self.setup.ranks)
        reference = batch_logprobs(self.start, rollouts, *options)
        return kl_estimate(rollouts.rollout_logprobs_PKT, reference, rollouts.mask_PKT)

    def _write(self, step: int, metrics: dict[str, float], weights: Tensor) -> None:
        every = self.setup.pipeline.tracking.histogram_every
        self.setup.journal.metrics(step, metrics)
        if every and step % every == 0:
            self.setup.journal.histogram(step, "advantage", weights.flatten().tolist())

    def _show_padding(self) -> None:
        """Tell once why updates are padded, which the first of them has found out."""
        why, self._padding_told = "" if self._padding_told else self.setup.policy.unpacked, True
        if why:
            cost = "the results are the same but for rounding, time and memory go by the longest completion of a batch"
            self.setup.observer.note(f"{self.config.label}: completions are padded, not packed, because {why}; {cost}")

    def _show_failures(self, failures: Mapping[str, str]) -> None:
        """``failures``: label of a reward -> the message of its first failure."""
        for label in failures.keys() - self._shown:
            self._shown.add(label)
            what = f"the reward {label} failed on a completion, which therefore gets no weight"
            self.setup.observer.note(f"{what}: {failures[label]}")
