""""""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Failed, State

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.interrupts import Patience
from gradus.flows.orchestrator.pages import PrefectView, logger
from gradus.flows.order import PREPARE, PipelineWork, Result, failure_line
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer


@dataclass
class Session:
    """What a flow run works on. It never passes through Prefect, which would have to understand or store it."""

    as_task: Any
    """The Prefect task that runs one piece of work."""
    work: PipelineWork
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
            self.as_task.with_options(name=label, task_run_name=label)(label, parent, return_state=True)
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
        return Completed(name=name, message=success_line(self.result, done), data=self.result)

    def stopped(self) -> State[Any]:
        """The state of what a signal ended: nobody's fault, and it can go on."""
        return State(type=StateType.CANCELLED, name="Stopped", message=self.stopping)

    @property
    def stopping(self) -> str:
        return f"stopped at {self.label}; `gradus resume {self.work.run.name}` goes on"


current_session: ContextVar[Session] = ContextVar("session")


def success_line(result: Result, done: int = 0) -> str:
    """What a state says about work that went well, of a stage that went on after ``done`` steps.

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
    """An error's kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextlib.contextmanager
def bound(session: Session) -> Iterator[None]:
    token = current_session.set(session)
    try:
        yield
    finally:
        current_session.reset(token)
