"""Runs isolated rewards in processes that can be killed, and keeps a batch going past those that hang or crash."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from pipeline.errors import StageFailed, UserError
from pipeline.rewards.worker_process import BOOTSTRAP, IsolatedReward
from pipeline.types import Prompt

START_LIMIT = 120.0
"""Seconds a worker may take to import what its rewards need."""
STARTS = 3
"""Times a worker may die while it starts before the stage fails."""
CHUNK = 16
"""Most completions that one worker holds at a time."""


@dataclass(frozen=True)
class Failure:
    """A completion that could not be scored."""

    kind: Literal["timeout", "crash", "error"]
    """It exceeded the time limit, ended its worker, or raised (a result that is no number in range included)."""
    message: str
    """One line for the log."""


Job = tuple[int, Prompt, str]
"""(index of the reward, prompt, completion)."""


class WorkerPool:
    """Worker processes for a list of isolated rewards; they start in the background as soon as it is made."""

    def __init__(self, rewards: Sequence[IsolatedReward], workers: int = 1, log: str | os.PathLike[str] | None = None):
        """``log``: a file for what rewards print; without it that is dropped."""
        self.rewards = list(rewards)
        self._log: IO[bytes] | int = subprocess.DEVNULL if log is None else open(log, "ab")  # noqa: SIM115 - closed in close
        self._workers = [_Worker(self.rewards, self._log) for _ in range(workers)]

    def wait_ready(self) -> None:
        """Wait until every worker has imported what its rewards need. Raises: UserError where one can't."""
        self._run([])

    def score(self, jobs: Sequence[Job]) -> list[float | Failure]:
        """The scores of a batch, in its order.

        Raises: UserError where a reward can't be imported; StageFailed where workers keep dying before they score.
        """
        try:
            return self._run(jobs)
        except BaseException:  # Ctrl-C too: half a batch must not leak into the next
            for worker in self._workers:
                if worker.held:
                    worker.restart()
            raise

    def _run(self, jobs: Sequence[Job]) -> list[float | Failure]:
        outcomes: dict[int, float | Failure] = {}
        waiting = deque(range(len(jobs)))
        chunk = max(1, min(CHUNK, len(jobs) // (4 * len(self._workers))))
        while len(outcomes) < len(jobs) or not all(worker.ready for worker in self._workers):
            for worker in self._workers:
                if worker.ready and not worker.held and waiting:
                    if worker.process.poll() is not None:  # it died idle: no completion is to blame
                        worker.restart()
                        continue
                    taken = [waiting.popleft() for _ in range(min(chunk, len(waiting)))]
                    worker.send([(i, *jobs[i]) for i in taken])
            for worker in self._readable():
                outcomes.update(worker.receive())
            for worker in self._workers:
                failure = worker.overdue()
                if failure is None:
                    continue
                if worker.held:
                    outcomes[worker.held.popleft()] = failure
                waiting.extendleft(reversed(worker.held))
                worker.restart()
        return [outcomes[i] for i in range(len(jobs))]

    def _readable(self) -> list[_Worker]:
        """Workers that have answered or died; waits for the first of them, or the first deadline."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.busy:
                    selector.register(worker.answers, selectors.EVENT_READ, worker)
            deadline = min((w.deadline for w in self._workers if w.busy), default=0.0)
            return [key.data for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]

    def close(self) -> None:
        """End the workers and everything they started."""
        for worker in self._workers:
            worker.kill()
        if not isinstance(self._log, int):
            self._log.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """One process: what it holds, what it has answered, until when it must answer next."""

    def __init__(self, rewards: list[IsolatedReward], log: IO[bytes] | int):
        self.rewards, self.log = rewards, log
        self.deaths = 0
        self.start()

    def start(self) -> None:
        # Popen execs a fresh interpreter: the parent's threads (torch's among them) are never forked. A session of its
        # own keeps the terminal's Ctrl-C from it and makes it the leader of a group that can be killed as a whole.
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
        )
        self.ready = self.ended = False
        self.held: deque[int] = deque()
        self.limits: dict[int, float] = {}
        self.partial = b""
        self.deadline = time.monotonic() + START_LIMIT
        self._write(self.rewards)

    @property
    def answers(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def busy(self) -> bool:
        """Whether an answer is due."""
        return bool(self.held) or not self.ready

    def send(self, jobs: list[tuple[int, int, Prompt, str]]) -> None:
        """Hand over a chunk: it is answered one completion at a time, in order."""
        self.held = deque(job[0] for job in jobs)
        self.limits = {job[0]: self.rewards[job[1]].time_limit for job in jobs}
        self.deadline = time.monotonic() + self.limits[self.held[0]]
        self._write(jobs)

    def receive(self) -> dict[int, float | Failure]:
        """What has been answered since; notes where the process has ended. Raises: UserError where it can't start."""
        data = os.read(self.answers, 1 << 16)
        if not data:
            self.ended = True
        *lines, self.partial = (self.partial + data).split(b"\n")
        outcomes: dict[int, float | Failure] = {}
        for line in lines:
            message = json.loads(line)
            if isinstance(message, dict):
                self._started(message)
                continue
            index, score, *error = message
            assert index == self.held.popleft(), "a worker answers in order"
            outcomes[index] = Failure("error", error[0]) if error else score
        if outcomes and self.held:
            self.deadline = time.monotonic() + self.limits[self.held[0]]
        return outcomes

    def _started(self, message: dict[str, Any]) -> None:
        if "failed" in message:
            raise UserError(
                f"the reward {message['failed']!r} can't be loaded",
                got=message["message"],
                fix="import the module in a Python shell to see the whole error",
            )
        self.ready, self.deaths = True, 0

    def overdue(self) -> Failure | None:
        """Why the process must be replaced, or None.

        Raises: StageFailed where it has died too often before it was ready.
        """
        late = self.busy and time.monotonic() > self.deadline
        if not self.ended and not late:
            return None
        status = self._status()
        if not self.ready:
            self.deaths += 1
            reason = f"no answer within {START_LIMIT:g} s" if late and not self.ended else status
            if self.deaths >= STARTS:
                raise StageFailed(f"the process for rewards can't start: {reason}")
        limit = self.limits[self.held[0]] if self.held else START_LIMIT
        if not self.ended or self.process.returncode == -signal.SIGXCPU:
            return Failure("timeout", f"no score within {limit:g} s; the worker was killed")
        return Failure("crash", f"the reward ended its worker: {status}")

    def _status(self) -> str:
        """How the process ended, in words."""
        self._kill_group()  # changes nothing if the process has ended: the kernel keeps how it did
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def restart(self) -> None:
        """Replace the process; the new one starts in the background."""
        self.kill()
        self.start()

    def kill(self) -> None:
        """End the process and whatever it started."""
        self._kill_group()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _kill_group(self) -> None:
        if self.process.returncode is None:  # not waited for yet, so its number can't be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _write(self, message: Any) -> None:
        """Send without ever waiting for longer than the deadline: a stopped process must not stop the trainer."""
        assert self.process.stdin is not None
        stdin = self.process.stdin.fileno()
        os.set_blocking(stdin, False)
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        rest = memoryview(struct.pack("<Q", len(body)) + body)
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            while rest:
                if not selector.select(max(0.0, self.deadline - time.monotonic())):
                    return  # overdue() finds it late and replaces it
                try:
                    rest = rest[os.write(stdin, rest) :]
                except BrokenPipeError:
                    return  # receive() finds its output ended
