"""A signal during a step: the step is finished and kept before the stage is left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gradus.pipeline.common import interruption
from gradus.pipeline.common.ranks import Ranks


class Interrupts:
    """Defers SIGINT and SIGTERM to the end of a step, on which all ranks agree."""

    def __init__(self, ranks: Ranks):
        self.ranks, self._leaving = ranks, False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A step. Raises: Interrupted after it, where a signal came during it."""
        self._leaving = False
        with interruption.deferred():
            yield
        if self._leaving:
            interruption.leave()
        if self.ranks.size == 1:
            interruption.leave_if_requested()

    def requested(self) -> bool:
        """Whether some rank has had a signal, so that the stage is left after this step."""
        self._leaving = self.ranks.any(interruption.requested())
        return self._leaving
