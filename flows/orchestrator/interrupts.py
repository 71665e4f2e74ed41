"""Signals while Prefect is at work: the first is obeyed as soon as Prefect has finished, a second ends at once.

An exception in the middle of one of Prefect's requests would leave an unusable record and a long traceback. During the
work itself :mod:`gradus.pipeline.common.interruption` handles signals instead.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from gradus.pipeline.common.interruption import (
    Interrupted,
    heeded,
    interrupt_thread,
    report_safely,
    takes_a_lock,
)


class DeferredInterrupts:
    """Keeps a first interrupt until the next call of :meth:`leave_if_requested`."""

    def __init__(self, note: Callable[[str], None]):
        self._note = note
        self.requested: int | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals in this block; does nothing outside the main thread, which alone may set handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in heeded()}
        self.install()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Handle the signals from now on, in place of the present handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                signal.signal(number, self._answer)

    def leave_if_requested(self) -> None:
        """Raises: Interrupted, if a signal has arrived."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if number == signal.SIGHUP:  # a terminal that is gone is not impatient
                return
            if takes_a_lock(frame):
                interrupt_thread().send_again(number)
                return
            raise Interrupted(number)
        self.requested = number
        interrupt_thread().expect_the_end(number)
        report_safely(self._note, "stopping as soon as Prefect has recorded it; the same signal again stops at once")
