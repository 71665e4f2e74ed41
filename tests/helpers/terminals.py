"""A command in a terminal of a given size, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from paths import search_path

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")
HOME, LEFT = b"\x1b[H", b"\x1b[?1049l"
"""The cursor goes to the upper left corner; the screen of a command's own is left."""


class Terminal:
    """``gradus`` in a terminal; use it as a context manager, which kills what still runs."""

    def __init__(self, folder: Path, *words: str, columns: int = 80, lines: int = 24, **environment: str):
        self.seen = b""
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
            variables = {**kept, "TERM": "xterm-256color", "PYTHONPATH": search_path(), **environment}
            time.sleep(0.1)  # until the terminal has its size
            os.execve(sys.executable, [sys.executable, "-m", "gradus", *words], variables)
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._master)

    def read(self, until: Callable[[], bool], seconds: float = 120.0) -> None:
        """Read what is printed until this is true."""
        limit = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < limit, self.seen[-3000:].decode(errors="replace")
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 1 << 16)

    def key(self, key: bytes) -> None:
        """Type a key, such as Ctrl-C."""
        os.write(self._master, key)

    def ended(self) -> int:
        """Wait for the end of the command; returns its exit code."""
        status = [0, 0]

        def has_ended() -> bool:
            status[:] = os.waitpid(self.pid, os.WNOHANG)
            return status[0] == self.pid

        try:
            self.read(has_ended)
        except OSError:  # it has closed its terminal
            status[:] = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status[1])

    def screens(self) -> list[list[str]]:
        """The lines of every whole screen that was drawn from its upper left corner on."""
        drawn = self.seen.partition(LEFT)[0].split(HOME)[1:]
        return [ESCAPES.sub(b"", each).decode().replace("\r", "").split("\n") for each in drawn]

    def plain(self) -> str:
        """All that was printed, without escapes."""
        return ESCAPES.sub(b"", self.seen).decode(errors="replace").replace("\r\n", "\n")
