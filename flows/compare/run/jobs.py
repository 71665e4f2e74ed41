"""Doing the jobs of a comparison: in their order, several at a time, each in a process that trains its run."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from gradus.flows.compare.plan.job import LOG_FILE, Job
from gradus.flows.screen.text import CONTINUE_HINT
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.process import child_environment
from gradus.pipeline.runs.run_folder import RunFolder

POLL_INTERVAL_SECONDS = 0.5
"""Time between two looks at the running jobs."""
STOP_TIMEOUT_SECONDS = 120.0
"""How long a process may take to finish its step and write a checkpoint."""


class RunTrainer(Protocol):
    """Trains runs: on this machine (:class:`LocalTrainer`) or on a cluster."""

    def train(self, run: RunFolder) -> None: ...

    def end(self) -> None: ...

    def kill(self) -> None: ...


class Watcher(Protocol):
    """Is informed about the jobs, in the thread of :func:`run_jobs`."""

    def changed(self, job: Job) -> None:
        """The job has begun or ended."""

    def refresh(self, jobs: Sequence[Job]) -> None:
        """Called at intervals while jobs run."""


class LocalTrainer:
    """Trains each run in a process of its own session, so that Ctrl-C reaches only this process."""

    def __init__(self) -> None:
        self._lock, self._running, self._ending = threading.Lock(), set[subprocess.Popen[bytes]](), False

    def train(self, run: RunFolder) -> None:
        """Train a run to its end in another process.

        Raises: StageFailed with the last line of a process that failed, or the signal that killed it; Interrupted.
        """
        log = run.path / LOG_FILE
        with log.open("ab") as output:
            start = output.tell()
            command = [sys.executable, "-P", "-m", "gradus.flows.cli.arm", run.name, str(run.path.parent)]
            with self._lock:
                if self._ending:
                    raise Interrupted(signal.SIGTERM)
                child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=child_environment(),
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(child)
        try:
            code = child.wait()
        finally:
            with self._lock:
                self._running.discard(child)
            if child.stdin is not None:
                child.stdin.close()
        if code == 0:
            return
        if self._ending:
            raise Interrupted(signal.SIGTERM)
        if run.summary() is not None:
            return  # only delivering its curves failed, which `gradus sync` can do
        raise StageFailed(f"{_ended(code)} ({log})" if code < 0 else f"{_ended(code)}: {last_line(log, start)}")

    def end(self) -> None:
        """Ask all processes to finish their step and end; no further one is started."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all processes at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            self._ending = True
            for child in self._running:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(number)


def _ended(code: int) -> str:
    """How a process failed.

    >>> _ended(-9), _ended(1)
    ('its process was killed (SIGKILL)', 'its process ended with 1')
    """
    if code < 0:
        return f"its process was killed ({signal.Signals(-code).name})"
    return f"its process ended with {code}"


def last_line(log: Path, start: int) -> str:
    """The last line that a process printed after byte ``start`` of its log, except the hint how to continue."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")
    printed = [line.strip() for line in lines if line.strip() and not line.startswith(CONTINUE_HINT)]
    return printed[-1] if printed else f"it printed nothing ({log})"


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    call: Callable[[Job], None],
    watcher: Watcher,
    trainer: RunTrainer,
    leave: Callable[[], None],
) -> None:
    """Do all jobs, ``parallel`` at a time, in their order, each once the jobs that it waits for have ended.

    ``call`` does one job, in a thread with a copy of this thread's context. ``leave`` raises Interrupted if a signal
    has arrived; then no further job begins, and running ones are asked to end. A failure stops only the jobs that need
    it.

    Raises: Interrupted.
    """
    running: dict[Future[None], Job] = {}
    with ThreadPoolExecutor(parallel, thread_name_prefix="arm") as threads:
        try:
            while True:
                leave()
                for job in _ready(jobs)[: parallel - len(running)]:
                    job.state = "running"
                    watcher.changed(job)
                    running[threads.submit(contextvars.copy_context().run, call, job)] = job
                if not running:
                    break
                _collect(running, wait(running, POLL_INTERVAL_SECONDS, FIRST_COMPLETED).done, watcher)
                watcher.refresh(jobs)
        except BaseException:
            trainer.end()
            try:
                _collect(running, wait(running, STOP_TIMEOUT_SECONDS).done, watcher)
            finally:
                trainer.kill()
            raise


def _ready(jobs: Sequence[Job]) -> list[Job]:
    """Waiting jobs that can begin; jobs that need a failed one are skipped."""
    by_name = {job.name: job for job in jobs}
    ready = []
    for job in jobs:
        if job.state != "waiting":
            continue
        before = [by_name[name] for name in job.after]
        if missing := [each for each in before if each.needed and each.lost]:
            job.state, job.reason = "skipped", f"{missing[0].title} {missing[0].state}"
        elif not any(each.state in ("waiting", "running", "stopped") for each in before):
            ready.append(job)
    return ready


def _collect(running: dict[Future[None], Job], done: Iterable[Future[None]], watcher: Watcher) -> None:
    """Record how jobs ended whose call has returned."""
    for future in list(done):
        job, error = running.pop(future), future.exception()
        if error is None:
            job.state = "done" if job.state == "running" else job.state
        elif isinstance(error, Interrupted):
            job.state = "stopped"
        else:
            said = str(error).strip().splitlines()
            job.state, job.reason = "failed", said[0] if said else type(error).__name__
        watcher.changed(job)


def do_job(job: Job, trainer: RunTrainer) -> None:
    """Make the job's run and train what is not done. Raises: StageFailed, UserError, Interrupted."""
    job.run = job.make()
    if job.run.summary() is not None:
        job.state = "reused"
        return
    trainer.train(job.run)
    if job.run.summary() is None:
        raise StageFailed(
            f"its process ended without an error, but the run is not complete ({job.run.path / LOG_FILE})"
        )
