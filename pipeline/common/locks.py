"""Who is working on a run: a lock that dies with the process that holds it, on whatever way that process ends."""

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
from typing import Any

from gradus.pipeline.common.errors import UserError

LOCK_FILE = "lock"
UNKNOWN_HOLDER = {"pid": "?", "host": "?", "since": "?"}
PATIENCE = 1.0
"""Seconds to try for: whoever merely looks at the lock holds it for an instant."""


@contextlib.contextmanager
def hold(run_path: Path) -> Iterator[None]:
    """Hold the run for this process. The kernel drops the lock of a dead one, so that no stale lock is ever in the way.

    Raises: UserError that says who holds it.
    """
    with (run_path / LOCK_FILE).open("a+") as stream:
        deadline = time.monotonic() + PATIENCE
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
    """Who is working on the run right now, or None; a record that a dead process left behind does not count."""
    with contextlib.suppress(FileNotFoundError), (Path(run_path) / LOCK_FILE).open("r") as stream:
        if not _locked(stream, fcntl.LOCK_SH):
            try:
                return json.loads(stream.read())
            except json.JSONDecodeError:
                return {}
    return None


def _locked(stream: Any, kind: int) -> bool:
    """Whether the lock could be taken; it is released when the stream is closed."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold ``path`` exclusively; yields whether it was obtained (always, when waiting)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
