"""One launch of a run: its lock, the handling of interrupts, the uploader, and the engine that trains the stages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gradus.flows.orchestrator.recorded import flow_record
from gradus.flows.screen.progress import watching
from gradus.flows.screen.text import line_printer
from gradus.flows.screen.view import only_a_view
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.observer import Observer, Observers
from gradus.pipeline.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from gradus.pipeline.tracking.client import UploaderHandle


class _Steps(Observer):
    """Counts the training steps of a launch."""

    done = 0

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self.done += 1


class _Delivery(Observer):
    """Starts the uploader of a launch once the policy before any stage has been evaluated.

    Importing MLflow takes seconds of computing, which the imports and the evaluation before the first step need.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.uploader: UploaderHandle | None = None

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        self.begin()

    def begin(self) -> UploaderHandle:
        """The uploader, which is started unless it runs already."""
        from gradus.pipeline.tracking.client import start_uploader

        if self.uploader is None:
            self.uploader = start_uploader(self.run_dir)
        return self.uploader


RunEngine = Callable[[Path, Observer], dict[str, Any]]
"""Trains the stages of a run folder, in order, and returns the run's summary."""

_launching = threading.Lock()
"""Held while this process trains: the number of threads, interrupts and the cores belong to the whole process."""


def launch(
    run: RunFolder, engine: str | RunEngine, console: Console, before: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train a run until its summary is written, and return that; ``before`` is called once the run is locked.

    From another thread than the main one, signals are not handled: Python delivers them to the main thread alone.
    Raises: StageFailed; UserError, also where this process trains another run already; Interrupted.
    """
    from gradus.pipeline.common.process import starting_up

    steps, delivery, say = _Steps(), _Delivery(run.path), line_printer(console)
    with contextlib.ExitStack() as held:
        held.enter_context(only_a_view())
        held.enter_context(_alone())
        held.enter_context(run.lock())
        held.enter_context(interruption.handled(say))
        held.enter_context(starting_up())
        run.settle()
        before()
        held.enter_context(_head_start(run))
        run_engine = _engine(engine, say) if isinstance(engine, str) else engine
        try:
            with watching(console) as observer:
                summary = run_engine(run.path, Observers(observer, steps, delivery))
            if run.summary() is None:
                raise StageFailed(f"the launch took {steps.done or 'no'} steps, and {run.name} is not complete")
        except BaseException:
            delivery.begin().finish(timeout=3)
            raise
        report = delivery.begin().finish()
        summary = _with_tracking_ids(run, summary)
    if report.message:
        say(report.message)
    return summary


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let no other thread of this process train. Raises: UserError where one does."""
    if not _launching.acquire(blocking=False):
        fix = "wait until it is done, or train the other run in a process of its own"
        raise UserError("this process trains another run already", fix=fix)
    try:
        yield
    finally:
        _launching.release()


def _head_start(run: RunFolder) -> contextlib.AbstractContextManager[None]:
    """Where a run has no data yet, make them in another process while torch is being imported."""
    from gradus.pipeline.tasks.background import data_ahead

    new = run.start() is None and run.origin is None
    return data_ahead(run.config.named_tasks, run.base_dir, run.data_dir) if new else contextlib.nullcontext()


def _with_tracking_ids(run: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Write the summary again if MLflow had not yet given every stage its run id when the summary was written."""
    from gradus.pipeline.execution.summary import finish

    return finish(run) if any(stage["mlflow_run_id"] is None for stage in summary["stages"]) else summary


def _engine(name: str, say: Callable[[str], None]) -> RunEngine:
    """The engine of this name. The Prefect server starts in the background while torch is being imported."""
    if name == "none":
        from gradus.flows.order import run_plain

        return run_plain
    from gradus.flows.orchestrator.server import start_server_in_background
    from gradus.flows.orchestrator.settings import home_notes

    for line in home_notes():
        say(line)
    start_server_in_background()
    from gradus.flows.staged import run_staged

    return run_staged


def settle_prefect_record(run: RunFolder, say: Callable[[str], None]) -> None:
    """Report to the Prefect server, if it is up, how the last launch ended, if that was killed before it could."""
    record = flow_record(run.path)
    if not record or record["state"] or run.holder() is not None:
        return
    from gradus.flows.orchestrator.server import ensure_server, server_status

    found = server_status()
    if not found["healthy"] or found["url"] != record["api_url"]:
        return
    with contextlib.suppress(OSError, RuntimeError):
        url = ensure_server()  # sets this process up for it, before Prefect is imported
        from gradus.flows.orchestrator.around_flow import flow_settings
        from gradus.flows.orchestrator.flow_record import FlowRecord

        with run.lock(), flow_settings(url):
            FlowRecord(run.path).settle(url, say)
