"""The trainer's side of one process for isolated rewards: the process itself, and what it holds and has answered.

Only the thread of :mod:`gradus.pipeline.rewards.workers.pool` uses it while it is at work.
"""

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
from dataclasses import dataclass
from typing import IO, Any, Literal

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.user_code import own_folders
from gradus.pipeline.rewards.workers.child import BOOTSTRAP, IsolatedReward
from gradus.pipeline.types import Prompt

START_LIMIT = 120.0
"""Seconds a worker may take to import what its rewards need."""
STARTS = 3
"""Times a worker may die while it starts before the stage fails."""


@dataclass(frozen=True)
class Failure:
    """A completion that could not be scored."""

    kind: Literal["timeout", "crash", "error"]
    """It exceeded the time limit, ended its worker, or raised (a result that is no number in range included)."""
    message: str
    """One line for the log."""


Job = tuple[int, Prompt, str]
"""(index of the reward, prompt, completion)."""


class Process:
    """An interpreter of its own that runs :mod:`gradus.pipeline.rewards.workers.child`."""

    def __init__(self, log: IO[bytes] | int):
        # Popen execs a fresh interpreter: the parent's threads (torch's among them) are never forked. A session of its
        # own keeps the terminal's Ctrl-C from it and makes it the leader of a group that can be killed as a whole.
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOTSTRAP, json.dumps([sys.path, own_folders()])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )

    @property
    def answers(self) -> int:
        """The file descriptor that its answers are read from."""
        assert self.popen.stdout is not None
        return self.popen.stdout.fileno()

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def write(self, message: Any, deadline: float) -> None:
        """Send without ever waiting for longer than the deadline: a stopped process must not stop the trainer."""
        assert self.popen.stdin is not None
        stdin = self.popen.stdin.fileno()
        os.set_blocking(stdin, False)
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        rest = memoryview(struct.pack("<Q", len(body)) + body)
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            while rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return  # overdue() finds it late and replaces it
                try:
                    rest = rest[os.write(stdin, rest) :]
                except BrokenPipeError:
                    return  # receive() finds its output ended

    def exit_status(self) -> str:
        """How the process ended, in words."""
        self.kill_group()  # changes nothing if the process has ended: the kernel keeps how it did
        code = self.popen.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process and everything it started."""
        self.kill_group()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def kill_group(self) -> None:
        """Also called while the pool's thread may be writing to the process, so that the write ends."""
        if self.popen.returncode is None:  # not waited for yet, so its number can't be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)


class Worker:
    """What one process holds, what it has answered, and until when it must answer next."""

    def __init__(self, rewards: list[IsolatedReward], log: IO[bytes] | int):
        self.rewards, self.log = rewards, log
        self.deaths = 0
        self.start()

    def start(self) -> None:
        """Start the process; it imports what its rewards need in the background."""
        self.process = Process(self.log)
        self.ready = self.ended = False
        self.held: deque[int] = deque()
        self.limits: dict[int, float] = {}
        self.partial = b""
        self.deadline = time.monotonic() + START_LIMIT
        self.process.write(self.rewards, self.deadline)

    def restart(self) -> None:
        """Replace the process; the new one starts in the background."""
        self.process.kill()
        self.start()

    @property
    def busy(self) -> bool:
        """Whether an answer is due."""
        return bool(self.held) or not self.ready

    def send(self, jobs: list[tuple[int, int, Prompt, str]]) -> None:
        """Hand over a chunk of (ticket, *job): it is answered one completion at a time, in order."""
        self.held = deque(job[0] for job in jobs)
        self.limits = {job[0]: self.rewards[job[1]].time_limit for job in jobs}
        self.deadline = time.monotonic() + self.limits[self.held[0]]
        self.process.write(jobs, self.deadline)

    def receive(self) -> dict[int, float | Failure]:
        """ticket -> outcome of what was answered since; notes where the process has ended.

        Raises: UserError where it can't start.
        """
        data = os.read(self.process.answers, 1 << 16)
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

    def overdue(self, looked: float) -> Failure | None:
        """Why the process must be replaced, or None; ``looked`` is a time at which its answers were not yet read.

        It is late only where an answer was missing when they were looked for after its deadline: one that was read
        late, because the sampler kept this process busy, came in time.

        Raises: StageFailed where it has died too often before it was ready.
        """
        late = self.busy and looked > self.deadline
        if not self.ended and not late:
            return None
        status = self.process.exit_status()
        if not self.ready:
            self.deaths += 1
            reason = f"no answer within {START_LIMIT:g} s" if late and not self.ended else status
            if self.deaths >= STARTS:
                raise StageFailed(f"the process for rewards can't start: {reason}")
        limit = self.limits[self.held[0]] if self.held else START_LIMIT
        if not self.ended or self.process.popen.returncode == -signal.SIGXCPU:
            return Failure("timeout", f"no score within {limit:g} s; the worker was killed")
        return Failure("crash", f"the reward ended its worker: {status}")
