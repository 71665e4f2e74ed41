"""When a stage writes its next checkpoint."""

from __future__ import annotations

import time

from pipeline.config import CheckpointConfig

WRITING_SHARE = 0.05
"""Largest share of a stage's time that checkpoints by the clock may take."""


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
