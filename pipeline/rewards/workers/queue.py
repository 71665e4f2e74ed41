"""The jobs of a worker pool: batches that are handed over in parts, the line that they wait in, and their outcomes."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from gradus.pipeline.rewards.workers.worker import Failure, Job
from gradus.pipeline.types import Prompt

CHUNK = 16
"""Most completions that one worker holds at a time."""


class Bell:
    """A pipe that wakes a thread that waits for pipes."""

    def __init__(self) -> None:
        self.woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def ring(self) -> None:
        """Wake the thread; returns at once."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier ones
            os.write(self._waker, b".")

    def silence(self) -> None:
        """Take out what has been rung."""
        os.read(self.woken, 4096)

    def close(self) -> None:
        """Give the pipe back to the system."""
        os.close(self.woken)
        os.close(self._waker)


class JobQueue:
    """Jobs that wait for a worker or are at one, with the lock that guards them and their batches.

    Batches call the methods of the first half with the lock held; the thread that feeds the workers calls the others.
    """

    def __init__(self, bell: Bell):
        self.changed = threading.Condition()
        self.closed = False
        self.waiting: deque[int] = deque()
        """Tickets of the jobs that no worker holds."""
        self._bell = bell
        self._tickets = itertools.count()
        self._jobs: dict[int, tuple[Batch, int, Job]] = {}
        self._error: BaseException | None = None

    def enqueue(self, batch: Batch, index: int, job: Job) -> None:
        """Put a batch's job at the end of the line."""
        ticket = next(self._tickets)
        self._jobs[ticket] = batch, index, job
        self.waiting.append(ticket)

    def forget(self, batch: Batch) -> None:
        """Take a batch's jobs out of the line; a worker that holds one is replaced."""
        for ticket in [ticket for ticket, (of, _, _) in self._jobs.items() if of is batch]:
            del self._jobs[ticket]
        self.waiting = deque(ticket for ticket in self.waiting if ticket in self._jobs)

    def wake(self) -> None:
        """Let the thread look again."""
        if not self.closed:
            self._bell.ring()

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait for something that the thread brings about. Raises: what the thread failed with."""
        self.changed.wait_for(lambda: done() or self._error is not None or self.closed)
        if self._error is not None:
            raise self._error
        assert done(), "the pool was closed while someone waited for it"

    def close(self) -> bool:
        """End the thread's work; whether it had not been ended before."""
        with self.changed:
            if self.closed:
                return False
            self.wake()  # the thread looks again once the lock is free, and so sees the next line
            self.closed = True
            self.changed.notify_all()
            return True

    # --- the thread's, without the lock -------------------------------------------------------------------------------

    def take(self, workers: int) -> list[tuple[int, int, Prompt, str]]:
        """(ticket, *job) for one of so many workers: few enough that they finish together, enough that they seldom wait
        for the thread."""
        with self.changed:
            count = min(CHUNK, max(1, len(self.waiting) // (4 * workers)), len(self.waiting))
            tickets = [self.waiting.popleft() for _ in range(count)]
            return [(ticket, *self._jobs[ticket][2]) for ticket in tickets]

    def put_back(self, tickets: Iterable[int]) -> None:
        """Jobs that a worker has not done are first in line again, unless their batch was dropped."""
        with self.changed:
            self.waiting.extendleft(ticket for ticket in reversed(list(tickets)) if ticket in self._jobs)

    def has_dropped(self, tickets: Iterable[int]) -> bool:
        """Whether one of these jobs is of a batch that was dropped."""
        with self.changed:
            return any(ticket not in self._jobs for ticket in tickets)

    def deliver(self, outcomes: dict[int, float | Failure]) -> None:
        """Give outcomes to their batches."""
        with self.changed:
            for ticket, outcome in outcomes.items():
                batch, index, _ = self._jobs.pop(ticket, (None, 0, None))
                if batch is not None:
                    batch.take(index, outcome)
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """The thread has failed: every caller that waits for scores raises this."""
        with self.changed:
            self._error = error
            self.changed.notify_all()


class Batch:
    """Completions that are scored together: handed over in parts, joined once."""

    def __init__(self, queue: JobQueue):
        self.queue = queue
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
        with self.queue.changed:
            if not self.waiting:
                self.since = time.monotonic()
            for job in jobs:
                self.queue.enqueue(self, self.size, job)
                self.size += 1
            self.queue.wake()

    def take(self, index: int, outcome: float | Failure) -> None:
        """Job ``index`` is done; called with the lock held."""
        self.outcomes[index] = outcome
        if not self.waiting:
            self.spent += time.monotonic() - self.since

    def worked(self) -> float:
        """Seconds so far in which some of it was waiting for a score."""
        with self.queue.changed:
            return self.spent + (time.monotonic() - self.since if self.waiting else 0.0)

    def join(self) -> list[float | Failure]:
        """The scores of everything that was handed over, in that order.

        Raises: UserError where a reward can't be imported; StageFailed where workers keep dying before they score.
        """
        with self.queue.changed:
            self.queue.wait_for(lambda: not self.waiting)
            return [self.outcomes[index] for index in range(self.size)]

    def drop(self) -> None:
        """The batch is no longer needed: what is left of it is not scored, and holds up no other batch."""
        with self.queue.changed:
            self.queue.forget(self)
            self.queue.wake()
