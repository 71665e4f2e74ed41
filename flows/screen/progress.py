"""The progress of a run in the terminal: live bars and charts, or plain lines in logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from gradus.flows.screen.live.bars import Bars, step_facts
from gradus.flows.screen.text import Lines, duration
from gradus.pipeline.common.observer import Observer

LINE_INTERVAL_SECONDS = 10.0
"""If the output is not a terminal, a line is printed at least this often."""
LINE_INTERVAL_SHARE = 0.1
"""A line is also printed after this share of a stage's steps."""


@contextmanager
def watching(console: Console) -> Iterator[Observer]:
    """An observer that suits the console: live progress on a terminal that can be redrawn, plain lines otherwise."""
    if not console.is_interactive:
        yield PlainObserver(console)
        return
    observer = LiveObserver(console)
    with observer.progress:
        yield observer


class _Pace:
    """How far a stage is, and when its last line was printed."""

    def __init__(self, done: int):
        self.began = self.printed = time.monotonic()
        self.done = self.printed_at = done


class PlainObserver(Lines):
    """A line at intervals, for logs and pipes."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._of: dict[str, _Pace] = {}

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        continued = f", continued after step {done}" if done else ""
        self.say(f"{label}: stage {index + 1} of {total}" + (f", {steps} steps{continued}" if steps else ""))
        self.begin(label, done)

    def begin(self, label: str, done: int) -> None:
        """Measure the pace of a stage from this step on."""
        self._of[label] = _Pace(done)

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        now, pace = time.monotonic(), self._of.setdefault(label, _Pace(0))
        soon = now - pace.printed < LINE_INTERVAL_SECONDS and step - pace.printed_at < LINE_INTERVAL_SHARE * steps
        if (soon and step < steps) or step <= pace.done:
            return
        pace.printed, pace.printed_at = now, step
        left = (now - pace.began) / (step - pace.done) * (steps - step)
        facts = [f"{label}: step {step}/{steps}", *step_facts(metrics), f"{duration(left)} left" if left >= 1 else ""]
        self.say(", ".join(filter(None, facts)))


class LiveObserver(Bars):
    """One live line about each stage that runs; the lines that stay are printed above it."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._lines = Lines(console)
        self.show("", "preparing the data and the policy", None)

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        self._lines.prepared(accuracy, interval)
        self.show("", "loading the first stage", None)

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        self._lines.stage_finished(label, result)
        super().stage_finished(label, result)
        if not self.labels:
            self.show("", "handing over", None)

    def note(self, text: str) -> None:
        self._lines.note(text)
