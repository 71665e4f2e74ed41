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
from gradus.pipeline.common.files import temporary_for

LOCK_FILE = "lock"
UNKNOWN_HOLDER = {"pid": "?", "host": "?", "since": "?"}
LOCK_TIMEOUT_SECONDS = 1.0
"""How long :func:`hold` tries: a process that only looks at the lock holds it for a moment."""

ABANDONED_SECONDS = 60.0
"""What is half made and older than this belongs to a process that was killed: a run is made in a moment."""


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock ``path`` exclusively, creating it if needed; yields whether the lock was obtained (always, when waiting)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        while True:
            stream = held.enter_context(path.open("a", encoding="utf-8"))
            free = _locked(stream, fcntl.LOCK_EX, wait)
            if not free or _in_place(stream, path):
                break
            stream.close()  # somebody removed the file while this process waited: its lock excludes nobody
        yield free


@contextlib.contextmanager
def hold(run_path: Path) -> Iterator[None]:
    """Lock a run's folder for this process, and record who holds it.

    The folder itself is locked too, so that removing the lock file under a running launch lets no second one in.
    Raises: UserError that names the holder, where another process has the lock.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    with contextlib.ExitStack() as held:
        while (stream := _taken(run_path, held)) is None:
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
    with contextlib.suppress(FileNotFoundError), (Path(run_path) / LOCK_FILE).open("r", encoding="utf-8") as stream:
        if not _locked(stream, fcntl.LOCK_SH):
            try:
                return json.loads(stream.read())
            except json.JSONDecodeError:
                return {}
    with contextlib.suppress(FileNotFoundError), _folder(Path(run_path)) as folder:
        return None if _locked(folder, fcntl.LOCK_SH) else {}
    return None


def vacant(folder: Path) -> bool:
    """Whether nothing has this name, or a folder in which a process that was killed has made nothing but temporaries.

    A process that is just making something there makes it vacant no longer in a moment: the caller must be able to
    lose against it.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return not folder.exists() and not folder.is_symlink()
    return all(name == LOCK_FILE or temporary_for(name) for name in names) and holder(folder) is None


def abandoned(folder: Path) -> bool:
    """Whether a folder is :func:`vacant`, and has been for longer than any process needs to make a run in it."""
    try:
        return vacant(folder) and folder.stat().st_mtime < time.time() - ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def _taken(run_path: Path, held: contextlib.ExitStack) -> IO[str] | None:
    """The lock file once it is locked, with the folder; None where another process has either."""
    with contextlib.ExitStack() as tried:
        stream = tried.enter_context((run_path / LOCK_FILE).open("a+", encoding="utf-8"))
        both = _locked(stream, fcntl.LOCK_EX) and _locked(tried.enter_context(_folder(run_path)), fcntl.LOCK_EX)
        if not both or not _in_place(stream, run_path / LOCK_FILE):
            return None
        held.enter_context(tried.pop_all())
        return stream


def _in_place(stream: IO[str], path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(file: IO[str] | int, kind: int, wait: bool = False) -> bool:
    """Whether the lock was obtained; it is released when the file is closed.

    Where folders cannot be locked, as in NFS, they count as locked: the lock file decides.
    """
    try:
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        if not isinstance(file, int):
            raise
    return True
