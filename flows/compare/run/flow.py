"""A comparison as a Prefect flow: every run of an arm is a task, several at a time, and the report is an artifact.

As in :mod:`gradus.flows.staged`, Prefect shows the work and decides nothing: results are in the run folders, errors are
kept outside Prefect, and if Prefect itself fails, the comparison continues without it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from prefect import flow, tags, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext, TagsContext
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed, State

from gradus.flows.compare.plan.job import Job
from gradus.flows.compare.run.jobs import do_job
from gradus.flows.compare.run.session import ComparisonSession, run_plain
from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.around_flow import FLUSH_TIMEOUT_SECONDS, flow_settings, flushed, logs_to_file
from gradus.flows.orchestrator.flow_record import TAG, FlowRecord, flow_parameters
from gradus.flows.orchestrator.password import login_hint
from gradus.pipeline.common.interruption import Interrupted

ARTIFACT_LIMIT = 100_000
"""How many characters of the report are sent to Prefect."""


class Tasks:
    """The jobs of a comparison as tasks of a flow. Errors of the work are kept here, outside Prefect."""

    def __init__(self, session: ComparisonSession):
        self.session = session
        self.errors: dict[str, BaseException] = {}
        """Name of the job -> its error."""
        self.attempted: set[str] = set()

    def as_task(self, job: Job) -> None:
        """Do one job in a task of the flow, or without a task if Prefect cannot start one."""
        with contextlib.suppress(Exception):
            _train.with_options(name=job.arm, task_run_name=job.title)(job.name, return_state=True)
        if job.name not in self.attempted:
            return self.session.plain(job)
        if (error := self.errors.get(job.name)) is not None:
            raise error
        return None

    def attempt(self, name: str) -> State[Any]:
        """Do a job, keep its error here, and return the state that describes how it ended."""
        job = next(job for job in self.session.jobs if job.name == name)
        self.attempted.add(name)
        try:
            do_job(job, self.session.trainer)
        except Interrupted as error:
            self.errors[name] = error
            return State(type=StateType.CANCELLED, name="Stopped", message="the same command continues it")
        except Exception as error:
            self.errors[name] = error
            return Failed(message=str(error).split("\n")[0])
        summary = (job.run.summary() if job.run is not None else None) or {}
        accuracy, seconds = summary.get("accuracy_end"), summary.get("seconds")
        state = "Reused" if job.state == "reused" else "Completed"
        return Completed(name=state, message=f"held-out accuracy {accuracy:.3f} in {seconds:.0f} s")


_tasks: ContextVar[Tasks] = ContextVar("comparison")


def _current() -> Tasks:
    """The running comparison. Flow and task look it up here, because Ray pickles them with everything they refer to."""
    return _tasks.get()


@task(persist_result=False, cache_policy=NO_CACHE)
def _train(run: str) -> State[Any]:
    """Train one run of the comparison in another process."""
    return _current().attempt(run)


@flow(name="comparison", persist_result=False)
def comparison(run_dir: str, host: str) -> State[Any]:
    """Train every arm on every seed and compare them; ``run_dir`` is the comparison's folder on ``host``."""
    session = _current().session
    session.interrupts.install()  # instead of Prefect's handler, which it removes itself at the end
    context, record = FlowRunContext.get(), FlowRecord(session.folder)
    if context is not None and context.flow_run is not None:
        page = record.begin(context.flow_run)
        session.note(f"Prefect shows this comparison at {page}{login_hint(get_current_settings().api.url)}")
    with TagsContext(current_tags=set()):
        session.work(_current().as_task)
    if session.markdown:
        with contextlib.suppress(Exception):
            key = re.sub(r"[^a-z0-9]+", "-", session.folder.name.lower()).strip("-")
            create_markdown_artifact(session.markdown[:ARTIFACT_LIMIT], key=f"{key}-report", description="The report")
    if isinstance(session.error, Interrupted):
        return State(type=StateType.CANCELLED, name="Stopped", message="the same command continues it")
    if session.error is not None:
        return Failed(message=str(session.error).split("\n")[0])
    failed = [job.title for job in session.jobs if job.needed and job.lost]
    return Failed(message=f"without {', '.join(failed)}") if failed else Completed(message="every arm is done")


def run_flow(session: ComparisonSession) -> None:
    """Run the comparison as a flow; the caller holds its lock. Raises: Interrupted, or what ended it early."""
    try:
        url = server.ensure_server()
    except (OSError, RuntimeError) as error:
        session.note(f"{error}; the comparison continues without Prefect")
        return run_plain(session)
    record, trouble = FlowRecord(session.folder), None
    with (
        logs_to_file(session.folder / "prefect.log"),
        flow_settings(url),
        flushed(lambda: FLUSH_TIMEOUT_SECONDS),
        _bound(session),
    ):
        record.settle(url, session.note)
        try:
            with session.interrupts.installed(), tags(TAG, "compare", session.folder.name):
                named: Any = comparison.with_options(
                    flow_run_name=session.folder.name, task_runner=session.task_runner()
                )
                state = named(**flow_parameters(session.folder), return_state=True)
            record.settled(state.name or "")
        except Interrupted as error:
            session.error = error
        except Exception as error:
            trouble = error
    if session.error is not None:
        record.finish(
            "stopped" if isinstance(session.error, Interrupted) else "failed", "the same command continues it"
        )
        raise session.error
    if session.markdown is None:
        session.note(f"Prefect failed ({type(trouble).__name__}); the comparison continues without it")
        return run_plain(session)
    record.finish("completed", "")
    return None


@contextlib.contextmanager
def _bound(session: ComparisonSession) -> Iterator[None]:
    token = _tasks.set(Tasks(session))
    try:
        yield
    finally:
        _tasks.reset(token)
