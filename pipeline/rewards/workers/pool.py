"""Runs isolated rewards in processes that can be killed, while the trainer computes something else.

A batch is handed over in parts and joined once. One thread feeds the workers, reads their answers and watches their
deadlines; it does nothing but wait on pipes, so that the sampler, which hands over each group as it ends, goes on.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Sequence

from gradus.pipeline.rewards.workers.child import IsolatedReward
from gradus.pipeline.rewards.workers.output import Output
from gradus.pipeline.rewards.workers.queue import Batch, Bell, JobQueue
from gradus.pipeline.rewards.workers.worker import Failure, Job, Worker

__all__ = ["Batch", "Failure", "IsolatedReward", "Job", "WorkerPool"]


class WorkerPool:
    """Worker processes for a list of isolated rewards; they start in the background as soon as it is made.

    Several batches may be under way at once, from several threads.
    """

    def __init__(self, rewards: Sequence[IsolatedReward], workers: int = 1, log: str | os.PathLike[str] | None = None):
        """``log``: a file for the beginning of what rewards print; without it that is dropped."""
        self._output = None if log is None else Output(log)
        output = subprocess.DEVNULL if self._output is None else self._output.descriptor
        self._workers = [Worker(list(rewards), output) for _ in range(workers)]
        self._bell = Bell()
        self.queue = JobQueue(self._bell)
        feeder = _Feeder(self.queue, self._bell, self._workers)
        self._thread = threading.Thread(target=feeder.run, name="reward-workers", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Wait until every worker has imported what its rewards need. Raises: UserError where one can't."""
        with self.queue.changed:
            self.queue.wait_for(lambda: all(worker.ready for worker in self._workers))

    def open(self) -> Batch:
        """A batch without jobs."""
        return Batch(self.queue)

    def close(self) -> None:
        """End the workers and everything they started."""
        if not self.queue.close():
            return
        for worker in self._workers:
            worker.process.hang_up()
        self._thread.join()
        for worker in self._workers:
            worker.process.kill()
        self._bell.close()
        if self._output is not None:
            self._output.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Feeder:
    """The thread's part: it alone touches the workers while they are at work."""

    def __init__(self, queue: JobQueue, bell: Bell, workers: Sequence[Worker]):
        self._queue, self._bell, self._workers = queue, bell, workers

    def run(self) -> None:
        """Feed and watch the workers until the queue is closed."""
        try:
            while self._goes_on():
                self._feed()
                self._watch()
        except BaseException as error:
            self._queue.fail(error)

    def _goes_on(self) -> bool:
        with self._queue.changed:  # not while close() is on its way between waking this thread and saying so
            return not self._queue.closed

    def _feed(self) -> None:
        """Give idle workers what is waiting; replace those that died idle or hold jobs of a dropped batch."""
        for worker in self._workers:
            if self._queue.has_dropped(worker.held):
                self._replace(worker)
            elif worker.ready and not worker.held and self._queue.waiting:
                if not worker.process.is_silent():
                    worker.restart()  # it died idle, or something else wrote to its socket: no completion is to blame
                elif jobs := self._queue.take(len(self._workers)):
                    worker.send(jobs)

    def _replace(self, worker: Worker) -> None:
        """Start a worker again; the jobs that it still held are first in line."""
        self._queue.put_back(worker.held)
        worker.restart()

    def _watch(self) -> None:
        """Wait until workers answer, die or are late, or something is handed over, and act on it."""
        looked = time.monotonic()
        for worker in self._readable(looked):
            self._queue.deliver(worker.receive())
        for worker in self._workers:
            failure = worker.overdue(looked)
            if failure is None:
                continue
            if worker.held:
                self._queue.deliver({worker.held.popleft(): failure})
            self._replace(worker)

    def _readable(self, now: float) -> list[Worker]:
        """Workers that have answered or died; waits for the first of them, the first deadline or the bell."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell.woken, selectors.EVENT_READ)
            busy = [worker for worker in self._workers if worker.busy]
            for worker in busy:
                selector.register(worker.process.channel, selectors.EVENT_READ, worker)
            timeout = max(0.0, min(worker.deadline for worker in busy) - now) if busy else None
            ready = [key.data for key, _ in selector.select(timeout)]
        if None in ready:
            self._bell.silence()
        return [worker for worker in ready if worker is not None]
