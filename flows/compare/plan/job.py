"""One run of a comparison as a job: how it is made, what it waits for, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gradus.pipeline.runs.run_folder import RunFolder

LOG_FILE = "launch.log"
"""In each run's folder: the output of its processes."""

JobState = Literal["waiting", "running", "done", "reused", "failed", "skipped", "stopped"]


@dataclass
class Job:
    """One run of the comparison."""

    name: str
    """The name of the run's folder."""
    arm: str
    seed: int
    title: str
    """What Prefect and the terminal show, such as ``gfpo seed 0``."""
    make: Callable[[], RunFolder]
    """Makes or opens the run once all jobs in ``after`` have ended. Raises: UserError."""
    after: tuple[str, ...] = ()
    """Names of the jobs that must end before it."""
    needed: bool = True
    """Whether the comparison is incomplete without it; a tuning run may fail."""
    state: JobState = "waiting"
    reason: str = ""
    """Why it failed or was skipped, in one line."""
    run: RunFolder | None = field(default=None, repr=False)
    """Its run, once that is made."""

    @property
    def complete(self) -> bool:
        """Whether its run is complete."""
        return self.state in ("done", "reused")

    @property
    def lost(self) -> bool:
        """Whether it has no result and will not get one in this launch."""
        return self.state in ("failed", "skipped")
