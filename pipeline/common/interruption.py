"""Leaving in good order: a first SIGTERM or Ctrl-C lets the step in hand be finished and kept, a second ends at once.

Signals belong to the process, so this is module state: whoever runs stages wraps them in :func:`handled`, and the loop
wraps each step in :func:`deferred`. Outside a step there is nothing to finish, and the first signal leaves at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.01
"""Seconds after which a signal comes again whose exception Python has swallowed."""


class Interrupted(SystemExit):
    """A signal ended the work; the exit code is 130 or 143. What was kept before it is whole."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else "terminated"


class _State:
    requested: int | None = None
    """The signal that is waiting for the step in hand."""
    deferring = False


def _nothing(text: str) -> None:
    pass


@contextlib.contextmanager
def handled(tell: Callable[[str], None] = _nothing) -> Iterator[None]:
    """Answer SIGINT and SIGTERM as described above; ``tell`` gets a line for the user when one has to wait.

    Only the main thread may set handlers; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def answer(number: int, frame: FrameType | None) -> None:
        if not _State.deferring or _State.requested is not None:
            raise Interrupted(number)
        _State.requested = number
        tell("finishing this step and writing a checkpoint; the same signal again stops at once")

    previous = [signal.signal(number, answer) for number in SIGNALS]
    try:
        with _insisting():
            yield
    finally:
        for number, handler in zip(SIGNALS, previous, strict=True):
            signal.signal(number, handler)
        _State.requested = None


@contextlib.contextmanager
def _insisting() -> Iterator[None]:
    """A signal that comes during a destructor or a weak reference's callback is not lost.

    Python drops an exception that leaves one of those, so the signal is sent once more when that is over.
    """
    others, main = sys.unraisablehook, threading.main_thread()

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Interrupted) and main.ident is not None:
            threading.Timer(AGAIN, signal.pthread_kill, (main.ident, unraisable.exc_value.number)).start()
        else:
            others(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = others


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A first signal waits until the end of this block; :func:`requested` then tells of it."""
    _State.deferring = True
    try:
        yield
    finally:
        _State.deferring = False


def waiting() -> int | None:
    """The signal that is waiting."""
    return _State.requested


def requested() -> bool:
    """Whether a signal is waiting."""
    return _State.requested is not None


def leave() -> None:
    """Raises: Interrupted, for the signal that is waiting, or for one that another rank has had."""
    raise Interrupted(_State.requested or signal.SIGTERM)


def leave_if_requested() -> None:
    """Raises: Interrupted, where a signal is waiting."""
    if requested():
        leave()
