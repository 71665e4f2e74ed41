"""A signal while a stage trains: the step in hand is finished and kept before the stage is left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gradus.pipeline.common import interruption
from gradus.pipeline.common.ranks import Ranks


class Interrupts:
    """Defers interrupts until the loop asks for them after a step. All ranks get the same answer."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """The steps of a stage and its last checkpoint, at the end of which nothing is left to be kept.

        Raises: Interrupted at the end, where a signal came after the last step had asked.
        """
        with interruption.deferred():
            yield
        if self.ranks.size == 1:  # several ranks finish the stage together
            interruption.leave_if_requested()

    def requested(self) -> bool:
        """Whether some rank has had a signal, so that the stage is left after this step."""
        return self.ranks.any(interruption.requested())

    def leave(self) -> None:
        """Raises: Interrupted, on every rank."""
        interruption.leave()
