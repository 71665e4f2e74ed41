"""The progress of a run in the terminal: a live line, or plain lines in logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from gradus.flows.screen.text import Lines, duration
from gradus.pipeline.common.observer import Observer

LINE_INTERVAL_SECONDS = 10.0
"""If the output is not a terminal, a line is printed at least this often."""
LINE_INTERVAL_SHARE = 0.1
"""A line is also printed after this share of a stage's steps."""

CUT_SHARE = 0.9
"""The share of a step's completions from which on their being cut is shown."""


@contextmanager
def watching(console: Console) -> Iterator[Observer]:
    """An observer that suits the console: live progress on a terminal, plain lines otherwise."""
    if not console.is_terminal:
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
        self._of[label] = _Pace(done)

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        now, pace = time.monotonic(), self._of.setdefault(label, _Pace(0))
        soon = now - pace.printed < LINE_INTERVAL_SECONDS and step - pace.printed_at < LINE_INTERVAL_SHARE * steps
        if soon and step < steps:
            return
        pace.printed, pace.printed_at = now, step
        left = (now - pace.began) / (step - pace.done) * (steps - step)
        facts = [f"{label}: step {step}/{steps}", *step_facts(metrics), f"{duration(left)} left" if left >= 1 else ""]
        self.say(", ".join(filter(None, facts)))


class LiveObserver(Lines):
    """One live line about each stage that runs."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._show("", "preparing the data and the policy", None)

    def _show(self, label: str, description: str, total: int | None, done: int = 0) -> None:
        """Show a line in place of the one with this label, and of the one that says what happens between stages."""
        for old in {label, ""} & self._tasks.keys():
            self.progress.remove_task(self._tasks.pop(old))
        self._tasks[label] = self.progress.add_task(description, total=total, completed=done, facts="")

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        super().prepared(accuracy, interval)
        self._show("", "loading the first stage", None)

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        self._show(label, f"{index + 1}/{total} {label}", steps or None, done)

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        task = self._tasks[label]
        self.progress.update(task, completed=step, facts="  ".join(step_facts(metrics)))
        if step == steps:
            self.progress.update(task, description=f"{label}: measuring held-out accuracy")

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        super().stage_finished(label, result)
        if (task := self._tasks.pop(label, None)) is not None:
            self.progress.remove_task(task)
        if not self._tasks:
            self._show("", "handing over", None)


def step_facts(metrics: Mapping[str, float]) -> list[str]:
    """Reward (or loss, if the stage has no reward) and speed of one step, and whether most completions were cut."""
    reward, loss = metrics.get("reward/mean"), metrics.get("update/loss")
    speed = metrics.get("throughput/tokens_per_second")
    facts = [f"reward {reward:.3f}"] if reward is not None else [f"loss {loss:.3f}"] if loss is not None else []
    cut = metrics.get("completion/truncated_share", 0.0)
    facts += [f"{cut:.0%} cut at max_tokens"] if cut >= CUT_SHARE else []
    return [*facts, f"{speed:,.0f} tokens/s"] if speed is not None else facts
