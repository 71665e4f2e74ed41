"""The terminal is a view of the work: whatever happens to it, training continues, and a signal is answered.

A reader may go away (``| head``, ``| tee`` after Ctrl-C), a terminal may be closed, a log may lie on a full disk, and a
stopped terminal (Ctrl-S, a pager, a connection that hangs) takes nothing for hours. What cannot be written is dropped:
everything that matters is in the run folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

PATIENCE_SECONDS = 5.0
"""How long one line may wait for a terminal or a pipe that takes nothing; later lines do not wait until it does."""


class _View(io.FileIO):
    """A file descriptor to write to, whose errors are dropped, and that never blocks for long."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self._stalled = False

    def write(self, data: Any, /) -> int:
        size, rest = len(data), memoryview(data).cast("B")
        if self._stalled:
            rest = memoryview(b"\n" + rest)  # the line before may have been cut
        with contextlib.suppress(OSError):
            while rest and self._ready():
                with contextlib.suppress(BlockingIOError):
                    # A pipe that is ready takes this much at once.
                    rest = rest[os.write(self.fileno(), rest[: select.PIPE_BUF]) :]
        return size

    def _ready(self) -> bool:
        """Whether the descriptor takes something, or has failed, which the next write will find."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        self._stalled = not poll.poll(0 if self._stalled else PATIENCE_SECONDS * 1000)
        return not self._stalled


def _view(stream: TextIO) -> TextIO:
    """The same stream, whose errors are dropped: of the descriptor, and of characters that its encoding lacks."""
    with contextlib.suppress(OSError):  # what was printed before may fail to be written
        stream.flush()
    # Without a buffer of its own nothing is left to be written at exit, and a signal handler may print at any moment.
    return io.TextIOWrapper(
        _View(stream.fileno()),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors="backslashreplace",
        write_through=True,
    )


@contextlib.contextmanager
def only_a_view() -> Iterator[None]:
    """Let no error of standard output or standard error reach the work in this block.

    Streams that something else has put in their place, such as a notebook's or a test's, stay as they are.
    """
    kept = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _view(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


def open_standard_streams() -> None:
    """Open the null device for each of the descriptors 0, 1 and 2 that is closed (``>&-``).

    Otherwise the next file that is opened, say a checkpoint's, would get its number, and output would be written to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
