"""What a person sees of a comparison at work: how far every run is, how fast, and how long it will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from gradus.flows.compare.plan.budget import MANY
from gradus.flows.compare.plan.job import Job
from gradus.flows.screen.status import last_step
from gradus.flows.screen.text import duration

EVERY_SECONDS = 60.0
"""Longest silence where the output is no terminal."""


class Watch:
    """Lines for every run that begins or ends; on a terminal also a bar for each run at work and one for all."""

    def __init__(self, console: Console, rollouts: float):
        self.console, self.rollouts = console, rollouts
        self._began = self._spoke = time.monotonic()
        self._bars: dict[str, Any] = {}
        self._from: dict[str, tuple[float, float]] = {}
        """Run -> when it was first seen at work here, and its share then."""
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
        """Live bars in this block, where there is a terminal for them."""
        with self._progress if self.console.is_terminal else contextlib.nullcontext():
            yield

    def say(self, text: str) -> None:
        """One line, as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def changed(self, job: Job) -> None:
        """A job has begun or ended."""
        if job.state == "running":
            self._bars[job.name] = self._progress.add_task(job.title, total=1.0, facts="")
            if not self.console.is_terminal:
                self.say(f"{job.title}: begins")
            return
        if job.name in self._bars:
            self._progress.remove_task(self._bars.pop(job.name))
        summary = (job.run.summary() if job.run is not None else None) or {}
        took = time.monotonic() - self._from.pop(job.name, (time.monotonic(), 0.0))[0]
        shown = summary and job.needed  # a tuning run's held-out accuracy is nobody's business
        told = job.reason or (f"held-out accuracy {summary['accuracy_end']:.3f}" if shown else "")
        self.say(f"{job.title}: {job.state}{f', {told}' if told else ''}{f' ({duration(took)})' if took > 1 else ''}")

    def look(self, jobs: Sequence[Job]) -> None:
        """Now and then: how far all are."""
        shares = {job.name: share_done(job) for job in jobs}
        now = time.monotonic()
        for job in jobs:
            if job.state == "running" and job.name in self._bars:
                self._from.setdefault(job.name, (now, shares[job.name]))
                self._progress.update(self._bars[job.name], completed=shares[job.name], facts=self._facts(job, shares))
        done = sum(shares.values()) / max(1, len(jobs))
        left = self._left(jobs, shares, now)
        self._progress.update(self._all, completed=done, facts=left)
        if not self.console.is_terminal and now - self._spoke > EVERY_SECONDS:
            self._spoke = now
            at_work = ", ".join(f"{j.title} {shares[j.name]:.0%}" for j in jobs if j.state == "running")
            ended = sum(job.state in ("done", "reused", "failed", "skipped") for job in jobs)
            self.say(f"{ended} of {len(jobs)} runs done; {at_work}{f'; {left}' if left else ''}")

    def _facts(self, job: Job, shares: dict[str, float]) -> str:
        """Rollouts a second of a run at work, and its time left."""
        since, first = self._from[job.name]
        passed, gained = time.monotonic() - since, shares[job.name] - first
        if passed < 2 or gained <= 0:
            return ""
        speed = f"{self.rollouts * gained / passed:,.0f} rollouts/s, " if job.arm != "base" else ""
        return f"{speed}{duration((1 - shares[job.name]) * passed / gained)} left"

    def _left(self, jobs: Sequence[Job], shares: dict[str, float], now: float) -> str:
        """How long all will take, from what was done since this launch began; runs are taken to be alike."""
        worked = [job for job in jobs if job.state in ("done", "running")]
        done = sum(shares[job.name] - self._from.get(job.name, (0, 0.0))[1] for job in worked)
        left = sum(1 - shares[job.name] for job in jobs if job.state in ("waiting", "running"))
        passed = now - self._began
        return f"about {duration(left * passed / done)} left" if done > 0.2 and passed > 10 else ""


def share_done(job: Job) -> float:
    """Share of a run's own steps that are done, those that are shared left out; 1 for one that is over."""
    if job.state in ("done", "reused", "failed", "skipped"):
        return 1.0
    if job.run is None or job.state == "waiting":
        return 0.0
    done = total = 0
    for index, config in enumerate(job.run.config.stages):
        result = job.run.result(index)
        if result is not None and "shared" in result:
            continue
        steps = config.steps if config.steps < MANY else 1  # of a stage that a rule ends, the step tells nothing
        total += steps
        at = 0 if config.steps == MANY else last_step(job.run.stage_dir(index) / "journal.jsonl") or 0
        done += steps if result is not None else at
    return done / total if total else 1.0
