"""The progress of a comparison in the terminal: every run's share done, its speed and the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from gradus.flows.compare.plan.budget import UNLIMITED_STEPS
from gradus.flows.compare.plan.job import Job
from gradus.flows.screen.status import last_step
from gradus.flows.screen.text import duration

LINE_INTERVAL_SECONDS = 60.0
"""If the output is not a terminal, a line is printed at least this often."""


class ComparisonProgress:
    """A line for every run that begins or ends; on a terminal also a bar for each running job and one for all."""

    def __init__(self, console: Console, rollouts: float):
        self.console, self.rollouts = console, rollouts
        self._began = self._printed = time.monotonic()
        self._bars: dict[str, Any] = {}
        self._from: dict[str, tuple[float, float]] = {}
        """Job -> when it was first seen running, and the share that was done then."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
        )
        self._all = self._progress.add_task("all runs", total=1.0, facts="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show live bars in this block, if the output is a terminal."""
        with self._progress if self.console.is_terminal else contextlib.nullcontext():
            yield

    def say(self, text: str) -> None:
        """Print one line without wrapping or highlighting."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def changed(self, job: Job) -> None:
        """Print that a job has begun or ended."""
        if job.state == "running":
            self._bars[job.name] = self._progress.add_task(job.title, total=1.0, facts="")
            if not self.console.is_terminal:
                self.say(f"{job.title}: begins")
            return
        if job.name in self._bars:
            self._progress.remove_task(self._bars.pop(job.name))
        summary = (job.run.summary() if job.run is not None else None) or {}
        took = time.monotonic() - self._from.pop(job.name, (time.monotonic(), 0.0))[0]
        shown = summary and job.needed  # the held-out accuracy of a tuning run must not influence anything
        result = job.reason or (f"held-out accuracy {summary['accuracy_end']:.3f}" if shown else "")
        self.say(
            f"{job.title}: {job.state}{f', {result}' if result else ''}{f' ({duration(took)})' if took > 1 else ''}"
        )

    def refresh(self, jobs: Sequence[Job]) -> None:
        """Update the bars, or print a line at intervals."""
        shares = {job.name: share_done(job) for job in jobs}
        now = time.monotonic()
        for job in jobs:
            if job.state == "running" and job.name in self._bars:
                self._from.setdefault(job.name, (now, shares[job.name]))
                self._progress.update(self._bars[job.name], completed=shares[job.name], facts=self._facts(job, shares))
        done = sum(shares.values()) / max(1, len(jobs))
        left = self._left(jobs, shares, now)
        self._progress.update(self._all, completed=done, facts=left)
        if not self.console.is_terminal and now - self._printed > LINE_INTERVAL_SECONDS:
            self._printed = now
            at_work = ", ".join(f"{j.title} {shares[j.name]:.0%}" for j in jobs if j.state == "running")
            ended = sum(job.complete or job.lost for job in jobs)
            self.say(f"{ended} of {len(jobs)} runs done; {at_work}{f'; {left}' if left else ''}")

    def _facts(self, job: Job, shares: dict[str, float]) -> str:
        """Rollouts per second and time left of a running job."""
        since, first = self._from[job.name]
        passed, gained = time.monotonic() - since, shares[job.name] - first
        if passed < 2 or gained <= 0:
            return ""
        speed = f"{self.rollouts * gained / passed:,.0f} rollouts/s, " if job.arm != "base" else ""
        return f"{speed}{duration((1 - shares[job.name]) * passed / gained)} left"

    def _left(self, jobs: Sequence[Job], shares: dict[str, float], now: float) -> str:
        """The time left for all jobs, from what this launch has done so far; runs are assumed to take the same time."""
        worked = [job for job in jobs if job.state in ("done", "running")]
        done = sum(shares[job.name] - self._from.get(job.name, (0, 0.0))[1] for job in worked)
        left = sum(1 - shares[job.name] for job in jobs if job.state in ("waiting", "running"))
        passed = now - self._began
        return f"about {duration(left * passed / done)} left" if done > 0.2 and passed > 10 else ""


def share_done(job: Job) -> float:
    """The share of a run's steps that is done, without shared stages; 1 for a job that has ended."""
    if job.complete or job.lost:
        return 1.0
    if job.run is None or job.state == "waiting":
        return 0.0
    done = total = 0
    for index, config in enumerate(job.run.config.stages):
        result = job.run.result(index)
        if result is not None and "shared" in result:
            continue
        steps = config.steps if config.steps < UNLIMITED_STEPS else 1  # if a rule ends the stage, its steps say nothing
        total += steps
        at = 0 if config.steps == UNLIMITED_STEPS else last_step(job.run.stage_dir(index) / "journal.jsonl") or 0
        done += steps if result is not None else at
    return done / total if total else 1.0
