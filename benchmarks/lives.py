"""Lives of a run for torture.py: a launch as by a user in a process of its own, and the ways in which it is ended.

The processes are forked from one that has imported torch and transformers, which saves seconds a life; all else happens
as on a command line: arguments, signals, output, exit code. ``kill`` lives are started by the real command, so that
they are struck while Python and its packages are imported, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pty
import random
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "transformers", "gradus.pipeline.execution.train", "benchmarks.lives"]
LONGEST_LIFE = {"kill": 25.0}
"""Seconds within which a life of this kind is ended."""
USUAL_LONGEST_LIFE = 10.0
PATIENCE = 120.0
"""Seconds that a life may take to end once it was asked to."""


def _live(
    arguments: list[str], folder: str, environment: dict[str, str], output: str, terminal: bool, begun: Any
) -> None:
    """The command, in a process that was forked for it; its output goes to a file, a named pipe or a terminal."""
    os.setsid()
    for ignored in (signal.SIGHUP, signal.SIGINT):  # where this program itself runs under nohup, or in the background
        signal.signal(ignored, signal.SIG_DFL if ignored == signal.SIGHUP else signal.default_int_handler)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | (0 if terminal else os.O_APPEND))
    if terminal:
        fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(descriptor, number)
        stream = os.fdopen(number, "w", closefd=False, buffering=1)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["gradus", *arguments]
    begun.send(True)
    try:
        from gradus.flows.cli.app import main

        main()
    except KeyboardInterrupt:  # while the command itself is imported
        sys.exit(130)


@dataclass
class Life:
    """A launch that runs, and what its output goes to."""

    process: Any
    closing: Callable[[], None] = lambda: None
    """Closes what its output goes to."""

    def ended(self, seconds: float) -> int | None:
        """The exit code, negative where a signal ended it; None if it has not ended within these seconds."""
        if isinstance(self.process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(seconds)
            return None
        self.process.join(seconds)
        return self.process.exitcode

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


class Cradle:
    """Starts lives in a folder and an environment; ``method`` is the way in which multiprocessing forks them."""

    def __init__(self, folder: Path, environment: dict[str, str], method: str = "forkserver"):
        self.folder, self.environment, self.log = folder, environment, folder / "said.log"
        self._context: Any = multiprocessing.get_context(method)
        self._context.set_forkserver_preload(PRELOADED)

    def forked(self, arguments: list[str], output: str | None = None, terminal: bool = False) -> Life:
        has_begun, begun = self._context.Pipe(duplex=False)
        words = (arguments, str(self.folder), self.environment, output or str(self.log), terminal, begun)
        process = self._context.Process(target=_live, args=words)
        process.start()
        has_begun.recv()
        return Life(process)

    def real(self, arguments: list[str]) -> Life:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "gradus", *arguments]
            return Life(subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log))

    def on_a_terminal(self, arguments: list[str]) -> Life:
        ours, theirs = pty.openpty()
        with self.log.open("ab") as log:
            emulator = subprocess.Popen(["cat"], stdin=ours, stdout=log)
        os.close(ours)
        life = self.forked(arguments, os.ttyname(theirs), terminal=True)

        def close() -> None:
            emulator.kill()
            emulator.wait()
            os.close(theirs)

        life.closing = close
        return life

    def through_tee(self, arguments: list[str]) -> Life:
        fifo = self.folder / "fifo"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        tee = subprocess.Popen(["tee", "-a", str(self.log)], stdin=reader, stdout=subprocess.DEVNULL)
        life = self.forked(arguments, str(fifo))
        os.close(reader)

        def end_tee() -> None:
            tee.send_signal(signal.SIGINT)
            tee.wait()

        life.closing = end_tee
        return life


def start(cradle: Cradle, kind: str, arguments: list[str]) -> Life:
    """Begin a life that is to end in this way."""
    if kind == "kill":
        return cradle.real(arguments)
    if kind == "terminal":
        return cradle.on_a_terminal(arguments)
    return cradle.through_tee(arguments) if kind == "tee" else cradle.forked(arguments)


def end(life: Life, kind: str, chance: random.Random) -> tuple[int | None, set[int]]:
    """End a life in this way; its exit code, and the codes that are right."""
    number = {"kill": signal.SIGKILL, "hup": signal.SIGHUP, "terminal": signal.SIGHUP, "tee": signal.SIGINT}.get(
        kind, chance.choice([signal.SIGTERM, signal.SIGKILL])
    )
    life.closing()
    if kind != "terminal":  # there the kernel sends it
        life.send(number)
    code = life.ended(PATIENCE)
    # 0: it had just been completed. Before gradus handles signals, Python or the kernel ends the process.
    return code, {-number} if number == signal.SIGKILL else {128 + number, -number, 0}
