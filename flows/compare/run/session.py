"""The session of a comparison, which every engine works on, and the engine without Prefect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradus.flows.compare.plan.job import Job
from gradus.flows.compare.run.jobs import LocalTrainer, RunTrainer, Watcher, do_job, run_jobs
from gradus.flows.orchestrator.interrupts import DeferredInterrupts


@dataclass
class ComparisonSession:
    """What a comparison works on. It never passes through Prefect."""

    folder: Path
    jobs: list[Job]
    parallel: int
    """Jobs at a time."""
    watcher: Watcher
    note: Callable[[str], None]
    """Shows the user a line."""
    report: Callable[[], str]
    """Writes the report of what is done and returns it as Markdown."""
    trainer: RunTrainer = field(default_factory=LocalTrainer)
    task_runner: Callable[[], Any] = lambda: None
    """Makes Prefect's task runner if the runs train on a cluster."""
    interrupts: DeferredInterrupts = field(init=False)
    """Signals that arrive while the comparison runs."""
    error: BaseException | None = None
    """The error that ended the comparison early."""
    markdown: str | None = None
    """The report, once it is written."""

    def __post_init__(self) -> None:
        self.interrupts = DeferredInterrupts(self.note)

    def work(self, call: Callable[[Job], None]) -> None:
        """Do all jobs and write the report of what is done; an error that ends this early is kept in ``error``."""
        try:
            run_jobs(self.jobs, self.parallel, call, self.watcher, self.trainer, self.interrupts.leave_if_requested)
        except BaseException as error:
            self.error = error
        try:
            self.markdown = self.report()
        except Exception as error:
            self.error = self.error or error

    def plain(self, job: Job) -> None:
        """Do one job without Prefect."""
        do_job(job, self.trainer)


def run_plain(session: ComparisonSession) -> None:
    """Run the comparison without Prefect. Raises: Interrupted, or the error that ended it early."""
    with session.interrupts.installed():
        session.work(session.plain)
    if session.error is not None:
        raise session.error
