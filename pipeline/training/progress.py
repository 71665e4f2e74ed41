"""How far a stage has come, what it tells of each step, and when it writes its next checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.pipeline import CheckpointConfig
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.metrics import finite

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


class StepLog:
    """Curves to the journal, progress and first failures to the observer."""

    def __init__(self, journal: Journal, observer: Observer, config: StageConfig, pipeline: PipelineConfig):
        self.journal, self.observer, self.config = journal, observer, config
        self.histogram_every = pipeline.tracking.histogram_every
        self._told: set[str] = set()

    def step(
        self, step: int, metrics: dict[str, float], weights: Tensor, failures: Mapping[str, str]
    ) -> dict[str, float]:
        """Tell of a step; ``failures`` are what rewards failed with first, by label. Returns the metrics as told."""
        self.journal.metrics(step, metrics)
        if self.histogram_every and step % self.histogram_every == 0:
            self.journal.histogram(step, "advantage", weights.flatten().tolist())
        for label in failures.keys() - self._told:
            self._told.add(label)
            told = f"the reward {label} failed on a completion, which therefore gets no weight: {failures[label]}"
            self.observer.note(told)
        told_metrics = finite(metrics)
        self.observer.step_done(self.config.label, step, self.config.steps, told_metrics)
        return told_metrics


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
