""""""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gradus.pipeline.runs.run_folder import RunFolder

LOG_FILE = "launch.log"
"""In each run folder: everything that its processes have printed."""


JobState = Literal["waiting", "running", "done", "reused", "failed", "skipped", "stopped"]


@dataclass
class Job:
    """One run of the comparison."""

    name: str
    """Of the run's folder."""
    arm: str
    seed: int
    title: str
    """``gfpo seed 0``: what Prefect and the terminal call it."""
    make: Callable[[], RunFolder]
    """Makes or opens the run, once everything in ``after`` is done. Raises: UserError."""
    after: tuple[str, ...] = ()
    """Names of the jobs without whose results it cannot begin."""
    needed: bool = True
    """Whether the comparison lacks something without it; a tuning run may fail."""
    state: JobState = "waiting"
    reason: str = ""
    """Why it failed, in one line."""
    run: RunFolder | None = field(default=None, repr=False)
