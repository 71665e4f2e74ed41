"""Interrupts (SIGINT, SIGTERM, SIGHUP): the first lets the current step finish and be saved, the second ends at once.

Handlers of signals belong to the process, so this is module state. The code that runs stages wraps them in
:func:`handled`, and the training loop wraps each step in :func:`deferred`. Outside of a step there is nothing to
finish, so the first interrupt ends the work at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end, and a terminal or connection that is gone."""
RESEND_SECONDS = 0.01
"""Delay before an interrupt is sent again whose exception Python has swallowed."""


class Interrupted(SystemExit):
    """An interrupt ended the work; the exit code is 130, 143 or 129. Everything that was saved before is complete."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        words = {int(signal.SIGINT): "interrupted", int(signal.SIGHUP): "hung up"}
        return words.get(self.number, "terminated")


class _State:
    requested: int | None = None
    """The interrupt that waits for the end of the current step."""
    raised: int | None = None
    """The interrupt that ended the work, wherever that was. Where the work goes on nevertheless, a library has caught
    the exception (``except:`` around a call, as in datasets' fingerprints), and the interrupt counts as deferred."""
    deferring = False


def _nothing(text: str) -> None:
    pass


def heeded() -> list[int]:
    """The interrupts to handle: all, but not SIGHUP where this process was started to ignore it, as by ``nohup``.

    SIGINT is handled even where it is ignored, as in a shell script's background jobs: whoever sends it there means it.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


def report_safely(report: Callable[[str], None], text: str) -> None:
    """Report from a signal handler: the terminal may be gone, or in the middle of another line."""
    with contextlib.suppress(Exception):
        report(text)


@contextlib.contextmanager
def handled(report: Callable[[str], None] = _nothing) -> Iterator[None]:
    """Handle interrupts as described above; ``report`` gets a line for the user when one is deferred.

    Only the main thread may set handlers; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def answer(number: int, frame: FrameType | None) -> None:
        if _State.requested is not None and number == signal.SIGHUP:
            return  # a terminal that is gone is not impatient
        if not _State.deferring or _State.requested is not None:
            _State.raised = number
            raise Interrupted(number)
        _State.requested = number
        report_safely(report, "finishing this step and writing a checkpoint; the same signal again stops at once")

    previous = {number: signal.signal(number, answer) for number in heeded()}
    try:
        with _resending():
            yield
        leave_if_requested()
    except Exception as error:
        if _State.raised is None:
            raise
        raise Interrupted(_State.raised) from error  # a library has made an error of its own of it
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _State.requested = _State.raised = None


@contextlib.contextmanager
def _resending() -> Iterator[None]:
    """Do not lose an interrupt that arrives during a destructor or the callback of a weak reference.

    Python drops an exception that is raised there, so the interrupt is sent again a moment later.
    """
    others, main = sys.unraisablehook, threading.main_thread()

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Interrupted) and main.ident is not None:
            threading.Timer(RESEND_SECONDS, signal.pthread_kill, (main.ident, unraisable.exc_value.number)).start()
        else:
            others(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = others


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defer the first interrupt until the caller asks for it: :func:`requested`, :func:`leave_if_requested`."""
    _State.deferring = True
    try:
        yield
    finally:
        _State.deferring = False


def waiting() -> int | None:
    """The interrupt that was deferred, or that a library has caught; None where there is none."""
    return _State.requested if _State.requested is not None else _State.raised


def requested() -> bool:
    """Whether an interrupt waits."""
    return waiting() is not None


def leave() -> None:
    """Raises: Interrupted, for the interrupt that waits here, or else for one that another rank received."""
    raise Interrupted(waiting() or signal.SIGTERM)


def leave_if_requested() -> None:
    """Raises: Interrupted, where an interrupt waits."""
    if requested():
        leave()
