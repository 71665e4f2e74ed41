"""Interrupts (SIGINT, SIGTERM, SIGHUP): the first lets the current step finish and be saved, the second ends at once.

Handlers of signals belong to the process, so this is module state. The code that runs stages wraps them in
:func:`handled`, and the training loop wraps each step in :func:`deferred`. Outside of a step there is nothing to
finish, so the first interrupt ends the work at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end, and a terminal or connection that is gone."""

RESEND_SECONDS = 0.01
"""Delay before an interrupt is sent again."""
LOCKS = {
    "threading": {"wait", "wait_for", "join", "_wait_for_tstate_lock"},
    "logging": {"emit", "flush", "format"},
    "queue": set[str](),
    "importlib._bootstrap": set[str](),
    "multiprocessing.synchronize": {"wait", "wait_for"},
}
"""Modules whose functions take locks -> those that may last. An exception between the taking of a lock and the block
that gives it back, such as at the end of ``Condition.__enter__``, leaves it taken: whoever wants it next hangs."""


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
            if takes_a_lock(frame):
                beside.send_again(number)
                return
            _State.raised = number
            beside.expect_the_end(number)
            raise Interrupted(number)
        _State.requested = number
        report_safely(report, "finishing this step and writing a checkpoint; the same signal again stops at once")

    beside = interrupt_thread()
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
    others, beside = sys.unraisablehook, interrupt_thread()

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            beside.send_again(unraisable.exc_value.number)
        else:
            others(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = others


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defer the first interrupt until the caller asks for it: :func:`requested`, :func:`leave_if_requested`.

    Interrupts reach the main thread alone; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.deferring = interrupt_thread().busy = True
    try:
        yield
    finally:
        _State.deferring = interrupt_thread().busy = False


def waiting() -> int | None:
    """The interrupt that was deferred, or that a library has caught; None where there is none."""
    return _State.requested if _State.requested is not None else _State.raised


def ended() -> int | None:
    """The interrupt that ends the work at once, for threads beside the main one, in which nothing is raised."""
    return _State.raised if threading.current_thread() is not threading.main_thread() else None


def requested() -> bool:
    """Whether an interrupt waits."""
    return waiting() is not None


def leave() -> None:
    """Raises: Interrupted, for the interrupt that waits here, or else for one that another rank received."""
    number = waiting() or signal.SIGTERM
    if threading.current_thread() is threading.main_thread():
        interrupt_thread().busy = False
        interrupt_thread().expect_the_end(number)
    raise Interrupted(number)


def leave_if_requested() -> None:
    """Raises: Interrupted, where an interrupt waits."""
    if requested():
        leave()


def takes_a_lock(frame: FrameType | None) -> bool:
    """Whether a signal has struck a function that takes or gives back a lock, and will be done in an instant."""
    if frame is None:
        return False
    lasting = LOCKS.get(frame.f_globals.get("__name__", ""))
    return lasting is not None and frame.f_code.co_name not in lasting


class InterruptThread:
    """A thread that waits beside the main one, for what a handler of signals cannot do itself.

    It sends an interrupt again that came at a moment when its exception would do harm, and ends a process that an
    interrupt has not ended in time. It takes orders by a pipe, so that the public methods may be called by a handler:
    that must take no lock, and so can start no thread.
    """

    def __init__(self) -> None:
        self._orders, self._order = os.pipe()
        os.set_blocking(self._order, False)
        self.busy = False
        """Whether a step is being finished, which may take any time."""
        threading.Thread(target=self._run, name="interrupts", daemon=True).start()

    def send_again(self, number: int) -> None:
        """Send this signal to the main thread once more, a moment later."""
        self._tell(number)

    def expect_the_end(self, number: int) -> None:
        """This signal is to end the process; where :func:`end_within` bounds that, end it when the time is over."""
        self._tell(number | 0x80)

    def _tell(self, order: int) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier ones
            os.write(self._order, bytes([order]))

    def _run(self) -> None:
        ending = deadline = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._orders], [], [], left)[0]:
                if not self.busy:
                    _end(ending or signal.SIGTERM)
                deadline = None  # the signal ends the process after the step, and will be told of again
                continue
            order = os.read(self._orders, 1)[0]
            if order & 0x80 and deadline is None and _Bound.seconds is not None:
                ending, deadline = order & 0x7F, time.monotonic() + _Bound.seconds
            elif not order & 0x80:
                time.sleep(RESEND_SECONDS)
                signal.pthread_kill(threading.main_thread().ident or 0, order)


class _Bound:
    seconds: float | None = None


def end_within(seconds: float | None) -> None:
    """Let an interrupt end this process within this time, whatever it hangs in; None: wait for ever.

    For commands only: a program that uses this package as a library goes on after an interrupt.
    """
    _Bound.seconds = seconds


def interrupt_thread() -> InterruptThread:
    """The thread of this process; a forked one gets its own."""
    return _thread_of(os.getpid())


@functools.cache
def _thread_of(process: int) -> InterruptThread:
    return InterruptThread()


def _end(number: int) -> None:
    """End the process without its own help, and say where it hung. All that lasts is on disk before it counts."""
    words = f"the process did not end within {_Bound.seconds:.0f} s of the signal, and was ended; what was kept stays"
    with contextlib.suppress(OSError, ValueError):
        with tempfile.NamedTemporaryFile("w", prefix="gradus-hung-", suffix=".txt", delete=False) as file:
            faulthandler.dump_traceback(file)
        words += f". Where it hung is in {file.name}"
    with contextlib.suppress(OSError, ValueError):
        os.set_blocking(2, False)  # a terminal whose reader has stopped is waited for by nobody
        os.write(2, f"{words}\n".encode())
    os._exit(128 + number)
