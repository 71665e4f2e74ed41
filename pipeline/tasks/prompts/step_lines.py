"""A file of a stage that trains, to which every step may append lines of JSON, and which a resume continues exactly.

A line has a checksum of its own, and a resumed stage cuts the file back to the steps before the one that it trains
first.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.common.files import sync_folder

CHECK_BYTES = len(', "check": 4294967295}\n')
"""How much longer a line is than its content at most."""


class StepLines:
    """Appends lines in the order of the steps. Without ``writes``, as in a rank that does not lead, it does nothing."""

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self._waiting = b""
        """What a full disk has refused so far."""
        self._begun = False

    def begin(self, step: int) -> None:
        """This step, which is the first one of this process when this is called first, is about to append: forget what
        an earlier launch kept of it and of those after it, and what a kill left half-written."""
        if self._begun or not self.writes:
            return
        self._begun = True
        if self.path.exists():
            whole = (len(raw) for raw, line in step_lines(self.path) if line is not None and line["step"] < step)
            size = sum(whole)
            with self.path.open("r+b") as file:
                file.truncate(size)

    def append(self, content: Mapping[str, Any]) -> None:
        """Add a line; ``content`` has its ``step``."""
        text = json.dumps(content).encode()
        self._waiting += json.dumps({**content, "check": zlib.crc32(text)}).encode() + b"\n"

    def flush(self) -> None:
        """Write what was appended. What a full disk refuses is tried again later."""
        with contextlib.suppress(OSError):
            self.sync(durably=False)

    def sync(self, durably: bool = True) -> None:
        """Write what waits; ``durably``: so that it survives a failure of the machine. Raises: OSError."""
        if not self.writes or not (self._waiting or self.path.exists()):
            return
        with self.path.open("ab") as file:
            begin = file.tell()
            try:
                file.write(self._waiting)
                file.flush()
            except OSError:
                file.truncate(begin)
                raise
            self._waiting = b""
            if durably:
                os.fsync(file.fileno())
        if durably:
            sync_folder(self.path.parent)


def step_lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its content; None, and no further line, where it is not as it was written."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        for raw in stream:
            try:
                content = json.loads(raw)
                check = content.pop("check")
                intact = raw.endswith(b"\n") and check == zlib.crc32(json.dumps(content).encode())
            except (ValueError, KeyError, AttributeError):
                intact, content = False, None
            yield raw, content if intact else None
            if not intact:
                return
