"""Following a flow run on another machine, through its states and its log on the Prefect server."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import State, StateType, WorkerStatus
from prefect.client.schemas.sorting import LogSort

from gradus.flows.deploy.worker import REFUSED

POLL_INTERVAL_SECONDS = 1.0
"""Time between two requests for the state and the log."""
EXPLAIN_TIMEOUT_SECONDS = 15.0
"""If no worker has begun the run after this time, a line explains why."""
LINES_PER_REQUEST = 200
"""The most log lines in one answer of the server."""
LONGEST_LOG_DELAY = timedelta(seconds=20)
"""How long after newer lines a line may reach the server: several processes send lines, in batches."""
LAST_LINES_TIMEOUT_SECONDS = 3.0
"""How long to wait for the last lines of a run that has ended."""


class FlowRunLog:
    """The log of a flow run, of which each line is returned once."""

    def __init__(self, client: SyncPrefectClient, flow_run_id: UUID):
        self.client, self.of_run = client, LogFilterFlowRunId(any_=[flow_run_id])
        self.seen: set[UUID | None] = set()
        self.since: datetime | None = None

    def new_lines(self) -> list[str]:
        """The lines that have reached the server since the last call."""
        timestamp = LogFilterTimestamp(after_=self.since - LONGEST_LOG_DELAY) if self.since is not None else None
        wanted, found = LogFilter(flow_run_id=self.of_run, timestamp=timestamp), list[Any]()
        while page := self.client.read_logs(
            wanted, limit=LINES_PER_REQUEST, offset=len(found), sort=LogSort.TIMESTAMP_ASC
        ):
            found += page
        new = [line for line in found if line.id not in self.seen]
        self.seen.update(line.id for line in new)
        self.since = max((line.timestamp for line in found), default=self.since)
        return [line.message for line in new]


def follow(
    client: SyncPrefectClient, flow_run_id: UUID, pool: str, start_worker: str, say: Callable[[str], None]
) -> int:
    """Show the states and the log of a flow run until it ends; returns the exit code for its final state."""
    log, shown, waiting_since = FlowRunLog(client, flow_run_id), "", time.monotonic()
    while True:
        state = client.read_flow_run(flow_run_id).state
        ended = state is not None and state.is_final()
        if ended:
            time.sleep(LAST_LINES_TIMEOUT_SECONDS)
        for message in log.new_lines():
            say(f"  {message}")
        if state is None:
            continue
        if state.name != shown:
            shown = state.name or ""
            say(state_line(state))
        if ended:
            return exit_code(state)
        if state.type not in (StateType.SCHEDULED, StateType.PENDING):
            waiting_since = float("inf")
        elif time.monotonic() - waiting_since > EXPLAIN_TIMEOUT_SECONDS:
            waiting_since = float("inf")
            say(why_it_waits(client, pool, start_worker))
        time.sleep(POLL_INTERVAL_SECONDS)


def why_it_waits(client: SyncPrefectClient, pool: str, start_worker: str) -> str:
    """Why no worker has begun the run yet."""
    workers = client.read_workers_for_work_pool(pool)
    alive = [worker.name for worker in workers if worker.status == WorkerStatus.ONLINE]
    if alive:
        return f"the run waits for its turn; workers of the pool {pool}: {', '.join(alive)}"
    return f"no worker of the pool {pool} is running; start one on the machine that is to train: {start_worker}"


def state_line(state: State) -> str:
    """A state as one line.

    >>> state_line(State(type=StateType.RUNNING, name="Running"))
    'Running'
    """
    return f"{state.name}: {state.message}" if state.message else str(state.name)


def exit_code(state: State) -> int:
    """The exit code that ``gradus run`` would have returned.

    >>> exit_code(State(type=StateType.COMPLETED)), exit_code(State(type=StateType.CANCELLED, name="Stopped"))
    (0, 143)
    >>> exit_code(State(type=StateType.FAILED)), exit_code(State(type=StateType.FAILED, name="Refused"))
    (1, 2)
    """
    if state.is_completed():
        return 0
    if state.is_cancelled():
        return 143
    return 2 if state.name == REFUSED else 1
