"""Makes the k-th change to the disk fail, or the process die in front of it.

Python announces what it opens, renames, makes and removes to audit hooks; ``os.fsync`` it does not, so that is wrapped.
What libraries write without Python's knowledge (safetensors, tokenizers) is reached by a limit on the size of files.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it changes the disk, clean-up code included."""


class Faults:
    """Counts the changes below a folder; ``fail_at`` makes one raise an OSError, from ``die_at`` on none happens."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.reset()
        sys.addaudithook(self._heard)

    def reset(self, fail_at: int = 0, die_at: int = 0, error: int = 5) -> None:
        self.fail_at, self.die_at, self.error = fail_at, die_at, error
        self.count = 0
        self.seen: list[str] = []

    @contextlib.contextmanager
    def watching(self, folder: Path, fail_at: int = 0, die_at: int = 0, error: int = 5) -> Iterator[Faults]:
        self.reset(fail_at, die_at, error)
        self.folder = str(folder)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self._change("os.fsync")
            real(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                yield self
            finally:
                self.folder = None

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not (event in CHANGES or event == "open"):
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        path = os.fsdecode(arguments[0])
        if path.startswith(self.folder) and not (event == "os.mkdir" and os.path.isdir(path)):
            self._change(event)

    def _change(self, event: str) -> None:
        self.count += 1
        self.seen.append(event)
        if self.die_at and self.count >= self.die_at:
            raise Killed
        if self.count == self.fail_at:
            raise OSError(self.error, f"injected at {event}")


@pytest.fixture(name="faults", scope="session")
def watcher() -> Faults:
    """One for the whole session, because an audit hook cannot be removed."""
    return Faults()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this many bytes: the kernel refuses the rest of the write, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
