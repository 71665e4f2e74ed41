"""File locks (``flock``). The kernel releases a lock when its process ends in any way, so a lock is never stale."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gradus.pipeline.common.errors import UserError

LOCK_FILE = "lock"
UNKNOWN_HOLDER = {"pid": "?", "host": "?", "since": "?"}
LOCK_TIMEOUT_SECONDS = 1.0
"""How long :func:`hold` tries: a process that only looks at the lock holds it for a moment."""


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock ``path`` exclusively, creating it if needed; yields whether the lock was obtained (always, when waiting)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        yield _locked(stream, fcntl.LOCK_EX, wait)


@contextlib.contextmanager
def hold(run_path: Path) -> Iterator[None]:
    """Lock a run's folder for this process, and record who holds it.

    Raises: UserError that names the holder, where another process has the lock.
    """
    with (run_path / LOCK_FILE).open("a+") as stream:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while not _locked(stream, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise UserError(
                    f"another process is working on the run {run_path.name!r}",
                    where=str(run_path),
                    got="process {pid} on {host}, since {since}".format(**UNKNOWN_HOLDER | (holder(run_path) or {})),
                    expected="one process at a time",
                    fix="wait for it, stop it, or launch under another --name",
                )
            time.sleep(0.05)
        stream.truncate(0)
        json.dump(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": " ".join(sys.argv)[:200],
            },
            stream,
        )
        stream.flush()
        yield


def holder(run_path: Path | str) -> dict[str, Any] | None:
    """The process that holds a run's lock now, as it described itself; None where the lock is free.

    A description that a dead process left in the file does not count.
    """
    with contextlib.suppress(FileNotFoundError), (Path(run_path) / LOCK_FILE).open("r") as stream:
        if not _locked(stream, fcntl.LOCK_SH):
            try:
                return json.loads(stream.read())
            except json.JSONDecodeError:
                return {}
    return None


def _locked(stream: IO[str], kind: int, wait: bool = False) -> bool:
    """Whether the lock was obtained; it is released when the stream is closed."""
    try:
        fcntl.flock(stream, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
