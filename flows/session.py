"""The session of a flow run: what the flow and its tasks work on and where the work's results and errors are kept.

Prefect calls our functions and records how they ended, but neither the work nor its results pass through it: it would
have to serialise them, and it replaces exceptions by its own. Flow and task find the session in a context variable.

    flow   run_pipeline(work, observer, session.call)      decides the order (order.py)
    call   starts a Prefect task for one piece of work     and works without Prefect where the task does not start
    task   session.attempt                                 does the work, keeps result or error, returns a state
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Failed, State

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.interrupts import DeferredInterrupts
from gradus.flows.orchestrator.pages import PrefectView, logger
from gradus.flows.order import PREPARE, PipelineWork, Result, failure_line
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer

_reviving = threading.Lock()


@dataclass
class Session:
    """What one flow run works on, and how far it is."""

    as_task: Any
    """The Prefect task whose function calls :meth:`attempt`; the module of the flow defines it."""
    work: PipelineWork
    observer: Observer
    interrupts: DeferredInterrupts
    flow_run: FlowRun | None = None
    """The flow run that a worker was given; None: Prefect makes one."""
    view: PrefectView | None = None
    """The flow run's pages, once the flow has begun."""
    label: str = PREPARE
    """The name of the present piece of work: ``prepare``, or a stage's."""
    pending: Callable[[], Result] = dict
    """The present piece of work."""
    tries: int = 0
    """How often it was begun; Prefect's task may try it again."""
    result: Result | None = None
    """What it returned."""
    error: BaseException | None = None
    """What it raised; at the end, what the whole flow raised."""
    failure: str | None = None
    """That error in one line, with the stage's name."""
    failed: dict[BaseException, tuple[str, str | None]] = field(default_factory=dict)
    """Error -> the piece of work that raised it, and that error in one line; of all pieces of work."""
    summary: Result | None = None
    """The run's summary, once every stage is done."""
    trouble: Exception | None = None
    """The last error of Prefect itself, in which the work has no part."""

    def call(self, label: str, work: Callable[[], Result], parent: str) -> Result:
        """Do one piece of work in a task of its name, or without a task where Prefect fails to start one.

        Raises: what the work raises.
        """
        # Other stages may be done at the same time, in other threads, each with a session of its own.
        here = replace(self, label=label, pending=work, tries=0, result=None, error=None, failure=None)
        self.label = label
        with _reviving:
            server.revive_server()
        try:
            with bound(here):
                self.as_task.with_options(name=label, task_run_name=label)(label, parent, return_state=True)
        except Exception as trouble:
            self.trouble = trouble
        if here.error is not None:
            self.failed[here.error] = label, here.failure
            raise here.error
        result = here.do() if here.result is None else here.result
        if self.view is not None and "steps" in result:
            self.view.work_done(label, result)
        return result

    def do(self) -> Result:
        """Do the pending work. A signal ends it in good order, even one that came just before it."""
        self.tries += 1
        try:
            with interruption.handled(self.observer.note):
                self.interrupts.leave_if_requested()
                if self.tries > 1:
                    self.work.reopen()
                return self.pending()
        except Interrupted as error:
            self.interrupts.requested = error.number  # now the next signal need not wait for Prefect
            raise

    def attempt(self, label: str) -> State[Any]:
        """Do the pending work, keep its result or error here, and return the state that describes how it ended."""
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
        return Completed(name=name, message=success_line(self.result, done), data=self.result)

    def stopped(self) -> State[Any]:
        """The state of work that a signal has ended: it has not failed, and it can be continued."""
        return State(type=StateType.CANCELLED, name="Stopped", message=self.stopping)

    @property
    def stopping(self) -> str:
        """Where the work was stopped, and how to continue it."""
        return f"stopped at {self.label}; `gradus resume {self.work.run.name}` continues the run"


current_session: ContextVar[Session] = ContextVar("session")
"""The session of the flow run that this thread works on."""


def success_line(result: Result, done: int = 0) -> str:
    """The message of the state of work that succeeded; ``done``: the steps that an earlier launch had done.

    >>> success_line({"accuracy_before": 0.4, "accuracy_after": 0.625, "seconds": 83.21}, 40)
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


def brief(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextlib.contextmanager
def bound(session: Session) -> Iterator[None]:
    """Make this the current session in the block."""
    token = current_session.set(session)
    try:
        yield
    finally:
        current_session.reset(token)
