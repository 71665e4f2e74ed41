"""The newest events of a journal, read as they are appended."""

from __future__ import annotations

import os
from pathlib import Path

from gradus.pipeline.tracking.journal import JournalEvent, iter_events

FIRST_BYTES = 1 << 19
"""How much of the end of a journal is read at first: some 300 steps."""


class JournalTail:
    """A journal that another process writes; each of its events is read once."""

    def __init__(self, path: Path):
        self.path = path
        self._file: tuple[int, int] | None = None
        """Device and inode: a stage that is trained again gets a new journal."""
        self._offset = 0

    def new(self) -> list[JournalEvent]:
        """The events since the last call; at first, and where the journal is another one, those at its end."""
        try:
            found = os.stat(self.path)
        except OSError:
            return []
        if self._file != (found.st_dev, found.st_ino) or found.st_size < self._offset:
            self._file, self._offset = (found.st_dev, found.st_ino), max(0, found.st_size - FIRST_BYTES)
        events: list[JournalEvent] = []
        if found.st_size > self._offset:
            for event, behind in iter_events(self.path, self._offset):
                self._offset = behind
                events += [event] if event is not None else []
        return events
