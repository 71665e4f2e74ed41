"""Runs isolated rewards in processes that can be killed, beside whatever the trainer computes meanwhile.

A batch is handed over in parts and joined once. One thread feeds the workers, reads their answers and watches their
deadlines; it does nothing but wait on pipes, so that the sampler, which hands over each group as it ends, goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from gradus.pipeline.rewards.workers.child import IsolatedReward
from gradus.pipeline.rewards.workers.worker import Failure, Job, Worker

__all__ = ["Batch", "Failure", "IsolatedReward", "Job", "WorkerPool"]

CHUNK = 16
"""Most completions that one worker holds at a time."""


class Batch:
    """Completions that are scored together: handed over in parts, joined once."""

    def __init__(self, pool: WorkerPool):
        self.pool = pool
        self.size = 0
        """Jobs handed over."""
        self.outcomes: dict[int, float | Failure] = {}
        self.since = self.spent = 0.0
        """When there last began to be something to do, and how long there was before."""

    @property
    def waiting(self) -> bool:
        """Whether anything that was handed over has no outcome yet."""
        return len(self.outcomes) < self.size

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand over jobs; returns at once."""
        with self.pool.changed:
            if not self.waiting:
                self.since = time.monotonic()
            for job in jobs:
                self.pool.enqueue(self, self.size, job)
                self.size += 1
            self.pool.wake()

    def take(self, index: int, outcome: float | Failure) -> None:
        """Job ``index`` is done; called with the lock held."""
        self.outcomes[index] = outcome
        if not self.waiting:
            self.spent += time.monotonic() - self.since

    def worked(self) -> float:
        """Seconds so far in which some of it was waiting for a score."""
        with self.pool.changed:
            return self.spent + (time.monotonic() - self.since if self.waiting else 0.0)

    def join(self) -> list[float | Failure]:
        """The scores of everything that was handed over, in that order.

        Raises: UserError where a reward can't be imported; StageFailed where workers keep dying before they score.
        """
        with self.pool.changed:
            self.pool.wait_for(lambda: not self.waiting)
            return [self.outcomes[index] for index in range(self.size)]

    def drop(self) -> None:
        """Nobody will join it: what is left is not scored, and holds up no other batch."""
        with self.pool.changed:
            self.pool.forget(self)
            self.pool.wake()


class WorkerPool:
    """Worker processes for a list of isolated rewards; they start in the background as soon as it is made.

    Several batches may be under way at once, from several threads.
    """

    def __init__(self, rewards: Sequence[IsolatedReward], workers: int = 1, log: str | os.PathLike[str] | None = None):
        """``log``: a file for what rewards print; without it that is dropped."""
        self._log: IO[bytes] | int = subprocess.DEVNULL if log is None else open(log, "ab")  # noqa: SIM115 - closed in close
        self.changed = threading.Condition()
        """Guards batches and all below but the workers, which are the thread's."""
        self._tickets = itertools.count()
        self._jobs: dict[int, tuple[Batch, int, Job]] = {}
        self._waiting: deque[int] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._workers = [Worker(list(rewards), self._log) for _ in range(workers)]
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._thread = threading.Thread(target=self._run, name="reward-workers", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Wait until every worker has imported what its rewards need. Raises: UserError where one can't."""
        with self.changed:
            self.wait_for(lambda: all(worker.ready for worker in self._workers))

    def open(self) -> Batch:
        """A batch without jobs."""
        return Batch(self)

    def close(self) -> None:
        """End the workers and everything they started."""
        with self.changed:
            if self._closed:
                return
            self.wake()  # whatever it does then happens after the lock is free, and so sees the next line
            self._closed = True
            self.changed.notify_all()
        for worker in self._workers:
            worker.kill_group()
        self._thread.join()
        for worker in self._workers:
            worker.kill()
        os.close(self._woken)
        os.close(self._waker)
        if not isinstance(self._log, int):
            self._log.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- with the lock held -------------------------------------------------------------------------------------------

    def enqueue(self, batch: Batch, index: int, job: Job) -> None:
        """Put a batch's job at the end of the line."""
        ticket = next(self._tickets)
        self._jobs[ticket] = batch, index, job
        self._waiting.append(ticket)

    def forget(self, batch: Batch) -> None:
        """Take a batch's jobs out of the line; a worker that holds one is replaced."""
        for ticket in [ticket for ticket, (of, _, _) in self._jobs.items() if of is batch]:
            del self._jobs[ticket]
        self._waiting = deque(ticket for ticket in self._waiting if ticket in self._jobs)

    def wake(self) -> None:
        """Let the thread look again."""
        if not self._closed:
            with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier ones
                os.write(self._waker, b".")

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait for something that the thread brings about. Raises: what the thread failed with."""
        self.changed.wait_for(lambda: done() or self._error is not None or self._closed)
        if self._error is not None:
            raise self._error
        assert done(), "the pool was closed while someone waited for it"

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._going_on():
                self._feed()
                self._watch()
        except BaseException as error:  # whoever waits for scores raises it
            with self.changed:
                self._error = error
                self.changed.notify_all()

    def _going_on(self) -> bool:
        with self.changed:  # not while close() is on its way between waking this thread and saying so
            return not self._closed

    def _feed(self) -> None:
        """Give workers that hold nothing what is waiting; replace those that died idle or hold what nobody wants."""
        for worker in self._workers:
            with self.changed:
                unwanted = any(ticket not in self._jobs for ticket in worker.held)
            if unwanted:
                self._replace(worker)
            elif worker.ready and not worker.held and self._waiting:
                if worker.process.poll() is None:
                    self._send_some(worker)
                else:  # it died idle: no completion is to blame
                    worker.restart()

    def _send_some(self, worker: Worker) -> None:
        """Few enough jobs that workers finish together, enough that they seldom wait for this thread."""
        with self.changed:
            count = min(CHUNK, max(1, len(self._waiting) // (4 * len(self._workers))), len(self._waiting))
            tickets = [self._waiting.popleft() for _ in range(count)]
            jobs = [(ticket, *self._jobs[ticket][2]) for ticket in tickets]
        if jobs:
            worker.send(jobs)

    def _replace(self, worker: Worker) -> None:
        """Start a worker anew; what it still held, and somebody wants, is first in line."""
        with self.changed:
            self._waiting.extendleft(ticket for ticket in reversed(worker.held) if ticket in self._jobs)
        worker.restart()

    def _watch(self) -> None:
        """Wait until workers answer, die or are late, or something is handed over, and see to it."""
        looked = time.monotonic()
        for worker in self._readable(looked):
            self._note(worker.receive())
        for worker in self._workers:
            failure = worker.overdue(looked)
            if failure is None:
                continue
            if worker.held:
                self._note({worker.held.popleft(): failure})
            self._replace(worker)

    def _readable(self, now: float) -> list[Worker]:
        """Workers that have answered or died; waits for the first of them, the first deadline or a wake-up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            busy = [worker for worker in self._workers if worker.busy]
            for worker in busy:
                selector.register(worker.answers, selectors.EVENT_READ, worker)
            timeout = max(0.0, min(worker.deadline for worker in busy) - now) if busy else None
            ready = [key.data for key, _ in selector.select(timeout)]
        if None in ready:
            os.read(self._woken, 4096)
        return [worker for worker in ready if worker is not None]

    def _note(self, outcomes: dict[int, float | Failure]) -> None:
        """Give outcomes to their batches."""
        with self.changed:
            for ticket, outcome in outcomes.items():
                batch, index, _ = self._jobs.pop(ticket, (None, 0, None))
                if batch is not None:
                    batch.take(index, outcome)
            self.changed.notify_all()
