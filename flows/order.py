"""The order of a pipeline's work, and the engine that needs nothing but Python: every stage a plain call.

The order is written once, in :func:`run_pipeline`; an engine only says how one piece of work is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gradus.flows.abreast import side_by_side
from gradus.pipeline.common import interruption
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.tracking.journal import Journal

if TYPE_CHECKING:
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.pipeline.stage import Stage

Result = dict[str, Any]
"""What a piece of work returns: paths, numbers and texts."""

PREPARE = "prepare"
"""The name of the work before the first stage."""


@dataclass(frozen=True)
class Execution:
    """The three functions that do the work; tests give others."""

    prepare: Callable[[RunFolder, Observer], Result]
    run_stage: Callable[[RunFolder, int, str, Stage | None, Observer], Result]
    finish: Callable[[RunFolder], Result]


class Call(Protocol):
    """Run one piece of work the way an engine does; return what it returns and raise what it raises."""

    def __call__(self, label: str, work: Callable[[], Result], parent: str) -> Result: ...


@dataclass(frozen=True)
class PipelineWork:
    """The work on one run: its folder, the known stages by name, and the functions that do the work."""

    run: RunFolder
    stages: Mapping[str, Stage]
    execution: Execution

    @classmethod
    def open(cls, run_dir: Path | str) -> PipelineWork:
        """The work on a run folder, done by ``pipeline.execution``, which imports torch."""
        from gradus.pipeline.execution.prepare import prepare
        from gradus.pipeline.execution.stage import run_stage
        from gradus.pipeline.execution.summary import finish
        from gradus.pipeline.runs.run_folder import RunFolder
        from gradus.stages import discover

        stages = discover()
        return cls(
            RunFolder(run_dir, [stage.config for stage in stages.values()]),
            stages,
            Execution(prepare, run_stage, finish),
        )

    def reopen(self) -> None:
        """Open the tracked run again, which ended when a piece of work failed, because that is tried again now."""
        start = self.run.start()
        if start is not None:
            from gradus.pipeline.runs.description import open_parent_journal

            open_parent_journal(self.run, start["policy"])

    def ended(self, error: BaseException) -> None:
        """Record in the journal that an error or a signal has ended the run."""
        path = self.run.path / "journal.jsonl"
        if path.exists():
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            with Journal(path) as journal:
                journal.end("KILLED" if stopped else "FAILED")


def run_pipeline(work: PipelineWork, observer: Observer, call: Call) -> Result:
    """Prepare, then do every stage from the checkpoint that it starts from; return the run's summary."""
    run, execution, stages = work.run, work.execution, work.run.config.stages
    try:
        made: dict[int | None, str] = {None: call(PREPARE, lambda: execution.prepare(run, observer), "")["checkpoint"]}

        def do(index: int, parent: str) -> Result:
            algorithm = work.stages[stages[index].stage] if stages[index].trains else None
            return call(
                stages[index].label, lambda: execution.run_stage(run, index, parent, algorithm, observer), parent
            )

        if (most := run.config.abreast) > 1:
            side_by_side(stages, made[None], most, do, observer.note)
        for index in range(len(stages) if most == 1 else 0):
            made[index] = do(index, made[graph.parent(stages, index)])["checkpoint"]
        return execution.finish(run)
    except BaseException as error:
        work.ended(error)
        raise


def run_plain(run_dir: Path | str, observer: Observer, work: PipelineWork | None = None) -> Result:
    """Do the whole work as plain calls, and return the run's summary. The caller holds the run's lock.

    Raises: what a stage raises; Interrupted after SIGINT, SIGTERM or SIGHUP.
    """
    with interruption.handled(observer.note):
        return run_pipeline(work or PipelineWork.open(run_dir), observer, lambda label, work, parent: work())


def failure_line(label: str, error: BaseException) -> str:
    """One line that says which piece of work failed, and why."""
    subject = "preparing the data and the policy" if label == PREPARE else f"stage {label!r}"
    said = str(error).strip().splitlines()
    reason = said[0].strip() if said else type(error).__name__
    return f"{subject} failed: {reason}"
