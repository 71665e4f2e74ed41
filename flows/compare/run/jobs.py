"""The work of a comparison: which runs there are, what each one waits for, and the processes that train them."""

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
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.process import child_environment
from gradus.pipeline.runs.run_folder import RunFolder

LOOK_EVERY = 0.5
"""Seconds between two looks at what the processes are doing."""
GRACE = 120.0
"""Seconds that a process may take to finish its step and write a checkpoint."""


class RunTrainer(Protocol):
    """What trains runs: :class:`LocalTrainer`, or a cluster."""

    def train(self, run: RunFolder) -> None: ...

    def end(self) -> None: ...

    def kill(self) -> None: ...


class Watcher(Protocol):
    """Hears what becomes of jobs; called from the thread that works them through."""

    def changed(self, job: Job) -> None: ...

    def look(self, jobs: Sequence[Job]) -> None: ...


class LocalTrainer:
    """The processes that train; each is a session of its own, so that Ctrl-C reaches their parent alone."""

    def __init__(self) -> None:
        self._lock, self._all, self._ending = threading.Lock(), set[subprocess.Popen[bytes]](), False

    def train(self, run: RunFolder) -> None:
        """Train a run to its end in a process of its own.

        Raises: StageFailed with the last words of one that failed, or what killed it; Interrupted where it was stopped.
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
                self._all.add(child)
        try:
            code = child.wait()
        finally:
            with self._lock:
                self._all.discard(child)
            if child.stdin is not None:
                child.stdin.close()
        if code == 0:
            return
        if self._ending:
            raise Interrupted(signal.SIGTERM)
        if run.summary() is not None:
            return  # what it had left to do was to deliver curves, which `gradus sync` does
        raise StageFailed(f"{_ending(code)} ({log})" if code < 0 else f"{_ending(code)}: {last_words(log, start)}")

    def end(self) -> None:
        """Ask all to finish the step in hand and end; none begins any more."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            self._ending = True
            for child in self._all:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(number)


def _ending(code: int) -> str:
    """How a process ended that did not end well.

    >>> _ending(-9), _ending(1)
    ('its process was killed (SIGKILL)', 'its process ended with 1')
    """
    if code < 0:
        return f"its process was killed ({signal.Signals(-code).name})"
    return f"its process ended with {code}"


def last_words(log: Path, start: int) -> str:
    """The last line that a process printed, of those after byte ``start`` of its log."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")
    told = [line.strip() for line in lines if line.strip() and not line.startswith("to go on:")]
    return told[-1] if told else f"it printed nothing ({log})"


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    call: Callable[[Job], None],
    watcher: Watcher,
    trainer: RunTrainer,
    leave: Callable[[], None],
) -> None:
    """Do every job, ``parallel`` of them at a time, in their order as far as what they wait for allows.

    ``call`` does one, in a thread with a copy of this thread's context. ``leave`` raises Interrupted where a signal has
    come: nothing more begins then, and what runs is asked to end. One job's failure stops only those that need it.

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
                _collect(running, wait(running, LOOK_EVERY, FIRST_COMPLETED).done, watcher)
                watcher.look(jobs)
        except BaseException:
            trainer.end()
            try:
                _collect(running, wait(running, GRACE).done, watcher)
            finally:
                trainer.kill()
            raise


def _ready(jobs: Sequence[Job]) -> list[Job]:
    """Waiting jobs that can begin; those that never can are skipped."""
    by_name = {job.name: job for job in jobs}
    ready = []
    for job in jobs:
        if job.state != "waiting":
            continue
        before = [by_name[name] for name in job.after]
        if missing := [each for each in before if each.needed and each.state in ("failed", "skipped")]:
            job.state, job.reason = "skipped", f"{missing[0].title} {missing[0].state}"
        elif not any(each.state in ("waiting", "running", "stopped") for each in before):
            ready.append(job)
    return ready


def _collect(running: dict[Future[None], Job], done: Iterable[Future[None]], watcher: Watcher) -> None:
    """What became of jobs whose call has returned."""
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
    """Make the job's run and train what is left of it. Raises: StageFailed, UserError, Interrupted."""
    job.run = job.make()
    if job.run.summary() is not None:
        job.state = "reused"
        return
    trainer.train(job.run)
    if job.run.summary() is None:
        raise StageFailed(f"its process ended well, and the run is not complete ({job.run.path / LOG_FILE})")
