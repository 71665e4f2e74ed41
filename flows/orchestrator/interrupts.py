"""Signals while Prefect is talking: the first is noted and obeyed as soon as Prefect is done, a second ends at once.

An exception in the middle of one of its requests would leave a record that says nothing, and a long traceback. The
work itself is not concerned: there :mod:`gradus.pipeline.common.interruption` answers.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from gradus.pipeline.common.interruption import SIGNALS, Interrupted


class DeferredInterrupts:
    """Notes a first SIGINT or SIGTERM for whoever asks :meth:`leave_if_requested` next."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell
        self.requested: int | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Answer the signals in this block; only the main thread may set handlers, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = [signal.getsignal(number) for number in SIGNALS]
        self.install()
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, previous, strict=True):
                signal.signal(number, handler)

    def install(self) -> None:
        """Answer the signals from here on, in place of whoever answers them now."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._answer)

    def leave_if_requested(self) -> None:
        """Raises: Interrupted, where a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise Interrupted(number)
        self.requested = number
        self._tell("stopping once Prefect knows of it; the same signal again stops at once")
