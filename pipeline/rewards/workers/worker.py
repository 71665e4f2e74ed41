"""The trainer's side of one process for isolated rewards: the process itself, and what it holds and has answered.

Only the thread of :mod:`gradus.pipeline.rewards.workers.pool` uses it while it is at work.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.shown import visible
from gradus.pipeline.common.user_code import own_folders
from gradus.pipeline.rewards.workers.child import BOOTSTRAP, IsolatedReward
from gradus.pipeline.rewards.workers.environment import explained, worker_environment
from gradus.pipeline.types import Prompt

START_LIMIT = 120.0
"""Seconds a worker may take to import what its rewards need."""
GUARDIAN_LIMIT = 5.0
"""Seconds a guardian may take to kill a worker and all that it started."""
LONGEST_ANSWER = 1 << 14
"""Bytes of a line after which it can't be an answer."""
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
    """An interpreter of its own that runs :mod:`gradus.pipeline.rewards.workers.child`, and its guardian."""

    def __init__(self, output: int, environment: dict[str, str]):
        # Popen execs a fresh interpreter: the parent's threads (torch's among them) are never forked. A session of its
        # own keeps the terminal's Ctrl-C from it.
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOTSTRAP, json.dumps([sys.path, theirs.fileno(), own_folders()])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        self.channel.setblocking(False)

    def is_silent(self) -> bool:
        """Whether it has not ended yet, and has sent nothing that was not read."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return self.popen.poll() is None and not poll.poll(0)

    def write(self, message: Any, deadline: float) -> None:
        """Send without ever waiting for longer than the deadline: a stopped process must not stop the trainer."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        rest = memoryview(struct.pack("<Q", len(body)) + body)
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_WRITE)
            while rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return  # overdue() finds it late and replaces it
                try:
                    rest = rest[self.channel.send(rest) :]
                except ConnectionError:
                    return  # receive() finds its output ended

    def read(self) -> bytes:
        """What it has sent since; nothing where it has ended. Called only where there is something to read."""
        try:
            return self.channel.recv(1 << 16)
        except ConnectionError:  # it ended with requests unread
            return b""

    def exit_status(self) -> str:
        """How the process ended, in words; it is killed if it has not."""
        self.hang_up()
        try:
            code = self.popen.wait(GUARDIAN_LIMIT)
        except subprocess.TimeoutExpired:  # its guardian is suspended, or has found something that it may not kill
            self.popen.kill()
            code = self.popen.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process and everything it started."""
        self.exit_status()
        self.channel.close()

    def hang_up(self) -> None:
        """Let the guardian kill it. Also called while the pool's thread may be writing, so that the write ends."""
        with contextlib.suppress(OSError):  # it has ended
            self.channel.shutdown(socket.SHUT_RDWR)


class Worker:
    """What one process holds, what it has answered, and until when it must answer next."""

    def __init__(self, rewards: list[IsolatedReward], output: int):
        self.rewards, self.output = rewards, output
        self.declared = {name for reward in rewards for name in reward.env}
        self.deaths = 0
        self.start()

    def start(self) -> None:
        """Start the process; it imports what its rewards need in the background."""
        self.process = Process(self.output, worker_environment(self.declared))
        self.ready = self.ended = self.broken = False
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
        """ticket -> outcome of what was answered since; notes where the process has ended, or said something else.

        Raises: UserError where it can't start.
        """
        data = self.process.read()
        self.ended = not data
        *lines, self.partial = (self.partial + data).split(b"\n")
        outcomes: dict[int, float | Failure] = {}
        self.broken = self.broken or len(self.partial) > LONGEST_ANSWER
        for line in lines:
            outcome = self._understood(line)
            if outcome is None:
                self.broken = True  # nothing that comes after it can be trusted
                break
            outcomes |= outcome
        if outcomes and self.held:
            self.deadline = time.monotonic() + self.limits[self.held[0]]
        return outcomes

    def _understood(self, line: bytes) -> dict[int, float | Failure] | None:
        """The outcome that a line tells, if any; None where the line is not what the process must say next."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not self.ready:
            return {} if self._started(message) else None
        match message:
            case [int(index), float(score)] if self.held and index == self.held[0] and math.isfinite(score):
                return {self.held.popleft(): score}
            case [int(index), None, str(error)] if self.held and index == self.held[0]:
                return {self.held.popleft(): Failure("error", explained(visible(error), self.declared))}
        return None

    def _started(self, message: Any) -> bool:
        match message:
            case {"ready": True}:
                self.ready, self.deaths = True, 0
            case {"failed": str(label), "message": str(error)}:
                raise UserError(
                    f"the reward {label!r} can't be loaded",
                    got=explained(visible(error), self.declared),
                    fix="import the module in a Python shell to see the whole error",
                )
        return self.ready

    def overdue(self, looked: float) -> Failure | None:
        """Why the process must be replaced, or None; ``looked`` is a time at which its answers were not yet read.

        It is late only where an answer was missing when they were looked for after its deadline: one that was read
        late, because the sampler kept this process busy, came in time.

        Raises: StageFailed where it has died too often before it was ready.
        """
        late = self.busy and looked > self.deadline
        if not self.ended and not late and not self.broken:
            return None
        status = self.process.exit_status()
        if not self.ready:
            self.deaths += 1
            reason = f"no answer within {START_LIMIT:g} s" if late and not self.ended else status
            reason = "it was not its worker that answered" if self.broken else reason
            if self.deaths >= STARTS:
                raise StageFailed(f"the process for rewards can't start: {reason}")
        limit = self.limits[self.held[0]] if self.held else START_LIMIT
        if self.broken:
            return Failure("crash", "the reward wrote where only its worker may; the worker was killed")
        if not self.ended:
            return Failure("timeout", f"no score within {limit:g} s; the worker was killed")
        return Failure("crash", f"the reward ended its worker: {status}")
