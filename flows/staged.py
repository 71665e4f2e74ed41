"""The staged pipeline as a Prefect flow: every stage is a task, and only paths and plain data pass between tasks.

Prefect is a witness here, never a judge. The work's results and errors travel beside it (:class:`_Session`), what is on
disk decides what may be reused, and where Prefect fails for reasons of its own the work goes on without it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TagsContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, Failed, State

from flows import server, settings
from flows.flow_record import FlowRecord
from flows.plain import Result, Work, failure_line, run_pipeline, run_plain
from flows.prefect_view import PrefectView, logger
from pipeline.errors import StageFailed, UserError
from pipeline.observer import Observer, Observers

RETRIES, RETRY_DELAY = 1, 2.0
"""How often, and after how many seconds, a stage is tried again after an infrastructure error."""

FLUSH_LIMIT = 5.0
"""Seconds that Prefect's background senders get at the end of a run; one where Prefect has just failed."""

TALKERS = ("prefect", "prefect._internal", "EventsWorker", "APILogWorker")
"""Loggers through which Prefect would speak on the terminal."""

FLAWS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""OS errors that say that something is wrong rather than busy; trying again would not help."""


@dataclass
class _Session:
    """What a flow run works on. It never passes through Prefect, which would have to understand or store it."""

    work: Work
    observer: Observer
    view: PrefectView | None = None
    pending: Callable[[], Result] = dict
    """What the next task does."""
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
        self.pending, self.result, self.error, self.failure = work, None, None, None
        server.revive_server()
        try:
            _stage.with_options(name=label, task_run_name=label)(label, parent, return_state=True)
        except Exception as trouble:
            self.trouble = trouble
        if self.error is not None:
            raise self.error
        result = work() if self.result is None else self.result
        if self.view is not None and "steps" in result:
            self.view.work_done(label, result)
        return result

    def attempt(self, label: str) -> State[Any]:
        """Do the pending work and say in a state how it ended; the result or error itself stays here."""
        self.result = self.error = self.failure = None
        try:
            with _exit_on_sigterm():
                self.result = self.pending()
        except Exception as error:
            self.error, self.failure = error, failure_line(label, error)
            logger.error(self.failure, exc_info=None if isinstance(error, UserError | StageFailed) else error)
            return Failed(message=self.failure)
        except BaseException as error:
            self.error = error
            raise
        name = "Reused" if self.result.get("reused") else "Completed"
        return Completed(name=name, message=_success_line(self.result), data=self.result)


_session: ContextVar[_Session] = ContextVar("session")


def _worth_retrying(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether the last attempt failed for a reason that may pass: the disk, the network; never the work itself."""
    session = _session.get()
    again = isinstance(session.error, OSError) and not isinstance(session.error, FLAWS)
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


def _ended(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """Hook: Prefect has taken the final state, so no later launch has to put it right."""
    FlowRecord(Path(flow_run.parameters["run_dir"])).settled(state.name or "")


@flow(
    name="staged-pipeline",
    persist_result=False,
    on_completion=[_ended],
    on_failure=[_ended],
    on_crashed=[_ended],
)
def staged_pipeline(run_dir: str) -> State[Any]:
    """Take the policy of a run folder through its stages."""
    session = _session.get()
    run, context = session.work.run, FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        page = FlowRecord(run.path).begin(context.flow_run)
        session.observer.note(f"Prefect shows this run at {page}")
    session.view = view = PrefectView(run, session.observer.note)
    view.opened()
    try:
        # A task would inherit the flow's tags and ask the server for a concurrency slot for each: 2 s where the
        # connection has meanwhile gone stale.
        with TagsContext(current_tags=set()):
            session.summary = run_pipeline(session.work, Observers(session.observer, view), session.call)
    except Exception as error:
        if error is not session.error:
            session.error, session.failure = error, f"the pipeline failed: {_brief(error)}"
        return Failed(message=session.failure)
    finally:
        server.revive_server()
        view.close()
    start, end = session.summary.get("accuracy_start"), session.summary.get("accuracy_end")
    return Completed(message=_success_line({"accuracy_before": start, "accuracy_after": end, **session.summary}))


def run_staged(run_dir: Path | str, observer: Observer, work: Work | None = None) -> Result:
    """The whole pipeline as a flow; returns the run's summary. The caller holds the run's lock.

    Raises: whatever a stage raised, unchanged; SystemExit(143) on SIGTERM. Prefect's own failures are only noted.
    """
    work = work or Work.open(run_dir)
    session = _Session(work, observer)
    record = FlowRecord(work.run.path)
    try:
        url = server.ensure_server()
    except (OSError, RuntimeError) as error:
        observer.note(f"{error}; the run goes on without Prefect")
        return run_plain(run_dir, observer, work)
    with _quiet(work.run.path / "prefect.log"), _settings(url), _flushed(session), _bound(session):
        record.settle(url, observer.note)
        try:
            with tags("gradus", work.run.config.name):
                flow_of_this_run: Any = staged_pipeline.with_options(flow_run_name=work.run.name)
                flow_of_this_run(str(work.run.path), return_state=True)
        except TerminationSignal as ending:
            session.error = ending
        except Exception as trouble:
            session.trouble = trouble
    if isinstance(session.error, TerminationSignal):
        raise SystemExit(143)
    if session.error is not None:
        if session.failure is not None:
            record.finish(session.failure)
        raise session.error
    if session.trouble is not None or session.summary is None:
        reason = "it did not run the flow" if session.trouble is None else _brief(session.trouble)
        observer.note(f"Prefect failed ({reason}); its pages miss a part of this run")
    summary = session.summary if session.summary is not None else run_plain(run_dir, observer, work)
    record.finish(None)
    return summary


def _success_line(result: Result) -> str:
    """What a state says about work that went well.

    >>> _success_line({"accuracy_before": 0.4, "accuracy_after": 0.625, "seconds": 83.21})
    'accuracy 0.400 -> 0.625 in 83 s'
    """
    before, after, seconds = (result.get(key) for key in ("accuracy_before", "accuracy_after", "seconds"))
    parts = []
    if before is not None and after is not None:
        parts.append(f"accuracy {before:.3f} -> {after:.3f}")
    elif (accuracy := result.get("accuracy")) is not None:
        parts.append(f"accuracy {accuracy:.3f}")
    if seconds is not None:
        parts.append(f"in {seconds:.0f} s")
    return " ".join(parts)


def _brief(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """While the work runs, SIGTERM leaves as SystemExit: Prefect's own signal means nothing to a stage."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _bound(session: _Session) -> Iterator[None]:
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


def _settings(url: str) -> contextlib.AbstractContextManager[Any]:
    """This flow's settings: the server's URL, also where Prefect was imported before it was known."""
    changes: dict[Any, Any] = {PREFECT_API_URL: url}
    if settings.users_api_url() is None:
        changes[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None  # no one listens on gradus's own server; saves up to 1 s
    return temporary_settings(changes)


@contextlib.contextmanager
def _flushed(session: _Session) -> Iterator[None]:
    """At the end give Prefect's background senders a moment, then let go of what they could not deliver.

    Left alone they would try at interpreter exit, 7 s an event, for as long as there are events.
    """
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):  # private names: without them only a dead server costs time
            services: dict[Any, Any] = EventsWorker._instances  # type: ignore[misc]
            senders = [(service._loop, service._task) for service in services.values()]
            outcome: Any = EventsWorker.drain_all(timeout=FLUSH_LIMIT if session.trouble is None else 1)
            for loop, sending in senders if outcome[1] else ():
                loop.call_soon_threadsafe(sending.cancel)
            concurrent.futures.wait(outcome[1], timeout=1)


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Prefect's own words go to a file in the run folder; the terminal belongs to the run's progress."""
    handler: logging.Handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, talkers = logging.getLogger(), [logging.getLogger(name) for name in TALKERS]
    kept = root.handlers[:], [(t.handlers[:], t.propagate) for t in talkers], logging.raiseExceptions, logger.level
    root.handlers = [h for h in root.handlers if not type(h).__module__.startswith("prefect.")]
    for talker in talkers:
        talker.handlers, talker.propagate = [handler], False
    logging.raiseExceptions = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, earlier, logging.raiseExceptions, level = kept
        for talker, (handlers, propagate) in zip(talkers, earlier, strict=True):
            talker.handlers, talker.propagate = handlers, propagate
        logger.setLevel(level)
        handler.close()
