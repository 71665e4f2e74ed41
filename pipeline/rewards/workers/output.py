"""What rewards print, kept up to a limit in a file; the rest is counted and dropped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading

KEPT = 1 << 20
"""Bytes that one pool adds to the file at most."""
PIPE = 1 << 20
"""Bytes that rewards can print before somebody has to read them."""
LAST_WORDS = 1.0
"""Seconds to wait at the end for a process that escaped and still holds the pipe."""


class Output:
    """A pipe for the workers' standard output and error, and the thread that drains it into a file."""

    def __init__(self, path: str | os.PathLike[str]):
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by the thread
        read, self.descriptor = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # Linux, and its limit for this user
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE)
        self._thread = threading.Thread(target=self._drain, args=(read,), name="reward-output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left; called when the workers have ended."""
        os.close(self.descriptor)
        self._thread.join(LAST_WORDS)

    def _drain(self, read: int) -> None:
        room, dropped = KEPT, 0
        with open(read, "rb", buffering=0) as pipe, self._file:
            while data := pipe.read(PIPE):
                kept = self._keep(data[:room])
                room -= kept
                if kept < len(data) and not dropped:
                    self._keep(f"\n[gradus keeps {KEPT} bytes of what rewards print, and drops the rest]\n".encode())
                dropped += len(data) - kept
            if dropped:
                self._keep(f"[gradus dropped {dropped} bytes of what rewards printed]\n".encode())

    def _keep(self, data: bytes) -> int:
        """Bytes that were written: a full disk must not stop a reward that prints."""
        with contextlib.suppress(OSError):
            return self._file.write(data)
        return 0
