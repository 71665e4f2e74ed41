"""A guardian: a process that does nothing but end another one, together with all that that one started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

from gradus.pipeline.common.process import on_hang_up

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
"""Options of Linux's ``prctl``."""


def guard(channel: int) -> None:
    """Fork; only the child returns. The caller stays behind and ends as the child ends.

    The caller is then the guardian: once the child has ended, or the other end of ``channel`` (a socket) is closed, it
    kills the child and all descendants of it. On Linux orphans become the guardian's own children, so that a daemon
    does not escape; elsewhere only the child's process group is killed. The socket stays open until all of them are
    gone, so whoever holds the other end then knows that nothing is left.

    Service managers and schedulers send SIGTERM to every process of a job. These two leave it to whoever holds the
    other end, who may still have a step to finish; programs that the child starts, and its forks, answer it as ever.
    """
    _prctl(SET_CHILD_SUBREAPER, 1)
    guardian, child = os.getpid(), os.fork()
    _pass_over(signal.SIGTERM, signal.SIGHUP)
    if child:
        _wait(child, channel)
    os.setpgid(0, 0)
    _prctl(SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:  # it ended before it could be asked to take this process along
        os._exit(1)


def _wait(child: int, channel: int) -> None:
    on_hang_up(channel, lambda: os.kill(child, signal.SIGKILL))
    # The child is not waited for until the end, so its number can't be another process's by now. Orphans are.
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) is not None and ended.si_pid != child:
        os.waitpid(ended.si_pid, 0)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ChildProcessError):
        while True:  # the children of those that are killed become this process's
            found = _children()
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            for _ in found or [child]:
                os.waitpid(-1, 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL's answer can't be set
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _pass_over(*numbers: int) -> None:
    """Do nothing on these signals, unlike the forks of this process and the programs that it starts.

    Programs would inherit SIG_IGN and then could not be ended by the signal; a handler they do not inherit.
    """
    previous = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}

    def hold(how: int) -> None:
        signal.pthread_sigmask(how, previous)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)
        hold(signal.SIG_UNBLOCK)

    for number in previous:
        signal.signal(number, lambda *_: None)
    # A signal that reaches a fork before its handlers are restored waits until they are.
    os.register_at_fork(
        before=lambda: hold(signal.SIG_BLOCK),
        after_in_parent=lambda: hold(signal.SIG_UNBLOCK),
        after_in_child=restore,
    )


def _children() -> list[int]:
    """The children of this process, orphans that it has taken over included; empty where there is no ``/proc``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.parent.name))
    return found


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
