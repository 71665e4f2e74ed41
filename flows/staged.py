"""The staged pipeline as a Prefect flow: every stage is a task, and only paths and plain data pass between tasks.

Prefect shows the work and decides nothing. Results and errors of the work are kept in the session (``session.py``),
what is on disk decides what is reused, and where Prefect itself fails the work continues without it.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import Abort, Pause, TerminationSignal
from prefect.flow_engine import run_flow
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed, State

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.around_flow import (
    FLUSH_TIMEOUT_SECONDS,
    flow_settings,
    flushed,
    logs_to_file,
    tolerate_lost_leases,
)
from gradus.flows.orchestrator.events import PrefectEvents
from gradus.flows.orchestrator.flow_record import TAG, FlowRecord, flow_parameters
from gradus.flows.orchestrator.interrupts import DeferredInterrupts
from gradus.flows.orchestrator.pages import PrefectView, logger
from gradus.flows.orchestrator.password import login_hint
from gradus.flows.order import PipelineWork, Result, run_pipeline, run_plain
from gradus.flows.session import Session, bound, brief, current_session, success_line
from gradus.pipeline.common import interruption
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer, Observers
from gradus.pipeline.runs.checkpoint import NO_ROOM

FLOW = "staged-pipeline"

RETRIES, RETRY_DELAY = 1, 2.0
"""How often a stage is tried again after an error of the infrastructure, and after how many seconds."""


FLAWS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors of the operating system that would come again: something is missing, in the way or not allowed."""


def _worth_retrying(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether the last attempt failed because of the disk or the network, which may work again in a moment.

    That excludes errors of the work itself, and a full disk.
    """
    session = current_session.get()
    error = session.error
    again = isinstance(error, OSError) and not isinstance(error, FLAWS) and error.errno not in NO_ROOM
    if again:
        session.observer.note(f"{session.failure}; trying again")
    return again


@task(
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=_worth_retrying,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def _stage(label: str, parent: str) -> State[Any]:
    """One piece of the pipeline's work, on the checkpoint ``parent``."""
    return current_session.get().attempt(label)


def _crashed(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """Hook: Prefect has stored the final state, so that no later launch has to correct it."""
    FlowRecord(current_session.get().work.run.path).settled(state.name or "")


@flow(name=FLOW, persist_result=False, on_crashed=[_crashed])
def staged_pipeline(run_dir: str, host: str) -> State[Any]:
    """Train the stages of a run; ``run_dir`` is its folder on ``host``."""
    return _go_through()


@flow(name=FLOW, persist_result=False, on_crashed=[_crashed])
def deployed_pipeline(config: dict[str, Any], source: str, runs: str, name: str | None = None) -> State[Any]:
    """Take a policy through the stages of a configuration, on a worker.

    Args:
        config: The pipeline, as `gradus config` prints it.
        source: The file it came from; what it loads lies beside that.
        runs: The folder of the runs, as the worker sees it.
        name: The run's name; an unfinished run with the same configuration is continued. Without it every run is new.
    """
    return _go_through()


def _go_through() -> State[Any]:
    """The body of both flows. What it works on is in the current session."""
    session = current_session.get()
    session.interrupts.install()  # instead of Prefect's handler, which it removes itself at the end
    run, context, record = session.work.run, FlowRunContext.get(), FlowRecord(session.work.run.path)
    if context is not None and context.flow_run is not None:
        page = record.begin(context.flow_run)
        session.observer.note(f"Prefect shows this run at {page}{login_hint(get_current_settings().api.url)}")
    session.view = view = PrefectView(run, session.observer.note)
    events = PrefectEvents(run)
    logger.info("run %s in %s on %s", run.name, run.path, socket.gethostname())
    view.opened(record.earlier(), record.page_of_origin(run))
    try:
        # A task would inherit the flow's tags and ask the server for a concurrency slot for each: 2 s where the
        # connection has meanwhile gone stale.
        with TagsContext(current_tags=set()):
            session.summary = run_pipeline(session.work, Observers(session.observer, view, events), session.call)
        events.run_finished(session.summary)
    except Interrupted as error:
        session.error, (session.label, _) = error, session.failed.get(error, (session.label, None))
        logger.info(session.stopping)
        return session.stopped()
    except Exception as error:
        unknown = session.label, f"the pipeline failed: {brief(error)}"
        session.error, (session.label, session.failure) = error, session.failed.get(error, unknown)
        return Failed(message=session.failure)
    finally:
        server.revive_server()
        view.close()
    start, end = session.summary.get("accuracy_start"), session.summary.get("accuracy_end")
    return Completed(message=success_line({"accuracy_before": start, "accuracy_after": end, **session.summary}))


def run_staged(
    run_dir: Path | str, observer: Observer, work: PipelineWork | None = None, flow_run: FlowRun | None = None
) -> Result:
    """Do the whole work as the given flow run or a new one, and return the run's summary.

    The caller holds the run's lock. Errors of Prefect itself become notes.
    Raises: what a stage raises, unchanged; Interrupted after SIGINT, SIGTERM or SIGHUP.
    """
    work = work or PipelineWork.open(run_dir)
    session = Session(_stage, work, observer, DeferredInterrupts(observer.note), flow_run)
    with interruption.handled(observer.note):
        try:
            url = server.ensure_server()
        except (OSError, RuntimeError) as error:
            observer.note(f"{error}; the run continues without Prefect")
            return run_plain(run_dir, observer, work)
        _run_flow(session, url)
        record = FlowRecord(work.run.path)
        if session.error is not None:
            if isinstance(session.error, Interrupted):
                record.finish("stopped", session.stopping)
            elif session.failure is not None:
                record.finish("failed", session.failure)
            raise session.error
        if session.trouble is not None or session.summary is None:
            reason = "it did not run the flow" if session.trouble is None else brief(session.trouble)
            observer.note(f"Prefect failed ({reason}); its pages miss a part of this run")
        summary = session.summary if session.summary is not None else run_plain(run_dir, observer, work)
        record.finish("completed", "")
        session.interrupts.leave_if_requested()
    return summary


def _run_flow(session: Session, url: str) -> None:
    """Do the session's work as a flow run of the server at ``url``; the session holds the outcome."""
    run, record = session.work.run, FlowRecord(session.work.run.path)

    def time_to_flush() -> float:
        return FLUSH_TIMEOUT_SECONDS if session.trouble is None else 1.0

    with logs_to_file(run.path / "prefect.log"), flow_settings(url), flushed(time_to_flush), bound(session):
        record.settle(url, session.observer.note, session.flow_run)
        labels = [TAG, run.config.name]
        labels += ["resumed"] if record.read() else []
        labels += ["fork"] if run.origin else []
        try:
            with session.interrupts.installed(), tags(*labels):
                state = _state_of_flow(session)
            record.settled(state.name or "")
        except TerminationSignal:  # SIGTERM before the flow's first line
            session.error = Interrupted(signal.SIGTERM)
        except (Abort, Pause):  # a flow run that was given, and cancelled before its first line
            session.error = Interrupted(signal.SIGTERM)
        except Interrupted as error:
            session.error = error
        except Exception as trouble:
            session.trouble = trouble


def _state_of_flow(session: Session) -> State[Any]:
    """Run the flow, and return the state in which it ended."""
    run = session.work.run
    if session.flow_run is None:
        own: Any = staged_pipeline.with_options(flow_run_name=run.name)
        return own(**flow_parameters(run.path), return_state=True)
    given: Any = deployed_pipeline.with_options(flow_run_name=run.name)
    with tolerate_lost_leases():
        state: Any = run_flow(given, session.flow_run, return_type="state")
    return state
