"""The staged pipeline as a Prefect flow: every stage is a task, and only paths and plain data pass between tasks.

Prefect is a witness here, never a judge. The work's results and errors travel beside it (:class:`_Session`), what is on
disk decides what may be reused, and where Prefect fails for reasons of its own the work goes on without it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import Abort, Pause, TerminationSignal
from prefect.flow_engine import run_flow
from prefect.states import Completed, Failed, State

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.around_flow import flow_settings, flushed, lenient_leases, quiet
from gradus.flows.orchestrator.flow_record import TAG, FlowRecord, flow_parameters
from gradus.flows.orchestrator.interrupts import Patience
from gradus.flows.orchestrator.pages import PrefectView, logger
from gradus.flows.order import PREPARE, Result, Work, failure_line, run_pipeline, run_plain
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer, Observers
from gradus.pipeline.runs.checkpoint import NO_ROOM

FLOW = "staged-pipeline"

RETRIES, RETRY_DELAY = 1, 2.0
"""How often, and after how many seconds, a stage is tried again after an infrastructure error."""

FLUSH_LIMIT = 5.0
"""Seconds that Prefect's background senders get at the end of a run; one where Prefect has just failed."""

FLAWS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""OS errors that say that something is wrong rather than busy; trying again would not help."""


@dataclass
class _Session:
    """What a flow run works on. It never passes through Prefect, which would have to understand or store it."""

    work: Work
    observer: Observer
    patience: Patience
    flow_run: FlowRun | None = None
    """The flow run that a worker was given; a launch of one's own makes one."""
    view: PrefectView | None = None
    label: str = PREPARE
    """Of the work that is to be done next, or now."""
    pending: Callable[[], Result] = dict
    """What the next task does."""
    tries: int = 0
    """How often that was begun."""
    result: Result | None = None
    error: BaseException | None = None
    """Of the work that ran last."""
    failure: str | None = None
    """That error in one line, with the stage's name."""
    summary: Result | None = None
    trouble: Exception | None = None
    """What Prefect itself failed with last."""

    def call(self, label: str, work: Callable[[], Result], parent: str) -> Result:
        """Run one piece of work as a task of its name; without the task where Prefect cannot."""
        self.label, self.pending, self.tries = label, work, 0
        self.result, self.error, self.failure = None, None, None
        server.revive_server()
        try:
            _stage.with_options(name=label, task_run_name=label)(label, parent, return_state=True)
        except Exception as trouble:
            self.trouble = trouble
        if self.error is not None:
            raise self.error
        result = self.do() if self.result is None else self.result
        if self.view is not None and "steps" in result:
            self.view.work_done(label, result)
        return result

    def do(self) -> Result:
        """The pending work, which a signal ends in good order, also one that came just before it."""
        self.tries += 1
        try:
            with interruption.handled(self.observer.note):
                self.patience.leave_if_requested()
                if self.tries > 1:
                    self.work.reopen()
                return self.pending()
        except Interrupted as error:
            self.patience.requested = error.number  # so that the next one does not wait for Prefect
            raise

    def attempt(self, label: str) -> State[Any]:
        """Do the pending work and say in a state how it ended; the result or error itself stays here."""
        self.result = self.error = self.failure = None
        try:
            self.result = self.do()
        except Exception as error:
            self.error, self.failure = error, failure_line(label, error)
            logger.error(self.failure, exc_info=None if isinstance(error, UserError | StageFailed) else error)
            return Failed(message=self.failure)
        except Interrupted as error:
            self.error = error
            return self.stopped()
        except BaseException as error:
            self.error = error
            raise
        name = "Reused" if self.result.get("reused") else "Completed"
        done = self.view.resumed.get(label, 0) if self.view is not None else 0
        return Completed(name=name, message=_success_line(self.result, done), data=self.result)

    def stopped(self) -> State[Any]:
        """The state of what a signal ended: nobody's fault, and it can go on."""
        return State(type=StateType.CANCELLED, name="Stopped", message=self.stopping)

    @property
    def stopping(self) -> str:
        return f"stopped at {self.label}; `gradus resume {self.work.run.name}` goes on"


_session: ContextVar[_Session] = ContextVar("session")


def _worth_retrying(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether the last attempt failed for a reason that may pass: the disk, the network; never the work itself.

    A full disk does not pass by itself.
    """
    session = _session.get()
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
    return _session.get().attempt(label)


def _crashed(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """Hook: Prefect has taken the final state, so no later launch has to put it right."""
    FlowRecord(_session.get().work.run.path).settled(state.name or "")


@flow(name=FLOW, persist_result=False, on_crashed=[_crashed])
def staged_pipeline(run_dir: str, host: str) -> State[Any]:
    """Take the policy of a run folder, as ``host`` sees it, through its stages."""
    return _go_through()


@flow(name=FLOW, persist_result=False, on_crashed=[_crashed])
def deployed_pipeline(config: dict[str, Any], source: str, runs: str, name: str | None = None) -> State[Any]:
    """Take a policy through the stages of a configuration, on a worker.

    Args:
        config: The pipeline, as `gradus config` prints it.
        source: The file it came from; what it loads lies beside that.
        runs: The folder of the runs, as the worker sees it.
        name: Of the run; an unfinished one with the same configuration continues. Without it every run is a new one.
    """
    return _go_through()


def _go_through() -> State[Any]:
    """The flow itself: what it works on is the session's."""
    session = _session.get()
    session.patience.install()  # instead of Prefect's handler, which it removes itself at the end
    run, context, record = session.work.run, FlowRunContext.get(), FlowRecord(session.work.run.path)
    if context is not None and context.flow_run is not None:
        session.observer.note(f"Prefect shows this run at {record.begin(context.flow_run)}")
    session.view = view = PrefectView(run, session.observer.note)
    logger.info("run %s in %s on %s", run.name, run.path, socket.gethostname())
    view.opened(record.earlier(), record.page_of_origin(run))
    try:
        # A task would inherit the flow's tags and ask the server for a concurrency slot for each: 2 s where the
        # connection has meanwhile gone stale.
        with TagsContext(current_tags=set()):
            session.summary = run_pipeline(session.work, Observers(session.observer, view), session.call)
    except Interrupted as error:
        session.error = error
        logger.info(session.stopping)
        return session.stopped()
    except Exception as error:
        if error is not session.error:
            session.error, session.failure = error, f"the pipeline failed: {_brief(error)}"
        return Failed(message=session.failure)
    finally:
        server.revive_server()
        view.close()
    start, end = session.summary.get("accuracy_start"), session.summary.get("accuracy_end")
    return Completed(message=_success_line({"accuracy_before": start, "accuracy_after": end, **session.summary}))


def run_staged(
    run_dir: Path | str, observer: Observer, work: Work | None = None, flow_run: FlowRun | None = None
) -> Result:
    """The whole pipeline as a flow, as the given flow run or a new one; returns the run's summary.

    The caller holds the run's lock.
    Raises: whatever a stage raised, unchanged; Interrupted after SIGINT or SIGTERM. Prefect's own failures are noted.
    """
    work = work or Work.open(run_dir)
    session = _Session(work, observer, Patience(observer.note), flow_run)
    with interruption.handled(observer.note):
        try:
            url = server.ensure_server()
        except (OSError, RuntimeError) as error:
            observer.note(f"{error}; the run goes on without Prefect")
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
            reason = "it did not run the flow" if session.trouble is None else _brief(session.trouble)
            observer.note(f"Prefect failed ({reason}); its pages miss a part of this run")
        summary = session.summary if session.summary is not None else run_plain(run_dir, observer, work)
        record.finish("completed", "")
        session.patience.leave_if_requested()
    return summary


def _run_flow(session: _Session, url: str) -> None:
    """The session's work as a flow run of the server at ``url``; what comes of it is in the session."""
    run, record = session.work.run, FlowRecord(session.work.run.path)

    def time_to_flush() -> float:
        return FLUSH_LIMIT if session.trouble is None else 1.0

    with quiet(run.path / "prefect.log"), flow_settings(url), flushed(time_to_flush), _bound(session):
        record.settle(url, session.observer.note, session.flow_run)
        labels = [TAG, run.config.name]
        labels += ["resumed"] if record.read() else []
        labels += ["fork"] if run.origin else []
        try:
            with session.patience.installed(), tags(*labels):
                state = _state_of_flow(session)
            record.settled(state.name or "")
        except TerminationSignal:  # SIGTERM before the flow's first line
            session.error = Interrupted(signal.SIGTERM)
        except (Abort, Pause):  # of a flow run that was given: it was called off before its first line
            session.error = Interrupted(signal.SIGTERM)
        except Interrupted as error:
            session.error = error
        except Exception as trouble:
            session.trouble = trouble


def _state_of_flow(session: _Session) -> State[Any]:
    """Go through the flow and return the state that it ended in."""
    run = session.work.run
    if session.flow_run is None:
        own: Any = staged_pipeline.with_options(flow_run_name=run.name)
        return own(**flow_parameters(run.path), return_state=True)
    given: Any = deployed_pipeline.with_options(flow_run_name=run.name)
    with lenient_leases():
        state: Any = run_flow(given, session.flow_run, return_type="state")
    return state


def _success_line(result: Result, done: int = 0) -> str:
    """What a state says about work that went well, of a stage that went on after ``done`` steps.

    >>> _success_line({"accuracy_before": 0.4, "accuracy_after": 0.625, "seconds": 83.21}, 40)
    'accuracy 0.400 -> 0.625 in 83 s, resumed after step 40'
    """
    before, after, seconds = (result.get(key) for key in ("accuracy_before", "accuracy_after", "seconds"))
    parts: list[str] = []
    if before is not None and after is not None:
        parts.append(f"accuracy {before:.3f} -> {after:.3f}")
    elif (accuracy := result.get("accuracy")) is not None:
        parts.append(f"accuracy {accuracy:.3f}")
    if seconds is not None:
        parts.append(f"in {seconds:.0f} s")
    more = [f"resumed after step {done}"] if done else []
    more += [f"shared with {result['shared']}"] if "shared" in result else []
    return ", ".join([*([" ".join(parts)] if parts else []), *more])


def _brief(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextlib.contextmanager
def _bound(session: _Session) -> Iterator[None]:
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)
