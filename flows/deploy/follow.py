"""Following a flow run that works elsewhere, by what the Prefect server knows of it: its states and its log."""

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

EVERY = 1.0
"""Seconds between two looks."""
PATIENCE = 15.0
"""Seconds that a run waits before the user is told why it may."""
PAGE = 200
"""Log lines that the server is asked for at a time."""
LATE = timedelta(seconds=20)
"""How much later than others a line may reach the server: several processes send them, in batches."""
REST = 3.0
"""Seconds that the last lines of a run get."""


class Log:
    """A flow run's log lines, each once."""

    def __init__(self, client: SyncPrefectClient, flow_run_id: UUID):
        self.client, self.of_run = client, LogFilterFlowRunId(any_=[flow_run_id])
        self.seen: set[UUID | None] = set()
        self.since: datetime | None = None

    def news(self) -> list[str]:
        """What has come in since the last time."""
        timestamp = LogFilterTimestamp(after_=self.since - LATE) if self.since is not None else None
        wanted, found = LogFilter(flow_run_id=self.of_run, timestamp=timestamp), list[Any]()
        while page := self.client.read_logs(wanted, limit=PAGE, offset=len(found), sort=LogSort.TIMESTAMP_ASC):
            found += page
        new = [line for line in found if line.id not in self.seen]
        self.seen.update(line.id for line in new)
        self.since = max((line.timestamp for line in found), default=self.since)
        return [line.message for line in new]


def follow(
    client: SyncPrefectClient, flow_run_id: UUID, pool: str, start_worker: str, say: Callable[[str], None]
) -> int:
    """Tell a flow run's states and log until it is over; returns the exit code that goes with its end."""
    log, shown, waiting_since = Log(client, flow_run_id), "", time.monotonic()
    while True:
        state = client.read_flow_run(flow_run_id).state
        over = state is not None and state.is_final()
        if over:
            time.sleep(REST)
        for message in log.news():
            say(f"  {message}")
        if state is None:
            continue
        if state.name != shown:
            shown = state.name or ""
            say(state_line(state))
        if over:
            return exit_code(state)
        if state.type not in (StateType.SCHEDULED, StateType.PENDING):
            waiting_since = float("inf")
        elif time.monotonic() - waiting_since > PATIENCE:
            waiting_since = float("inf")
            say(why_it_waits(client, pool, start_worker))
        time.sleep(EVERY)


def why_it_waits(client: SyncPrefectClient, pool: str, start_worker: str) -> str:
    """Why no worker has begun the run yet."""
    workers = client.read_workers_for_work_pool(pool)
    alive = [worker.name for worker in workers if worker.status == WorkerStatus.ONLINE]
    if alive:
        return f"it waits for its turn; workers on {pool}: {', '.join(alive)}"
    return f"no worker looks at {pool}; on the machine that is to train: {start_worker}"


def state_line(state: State) -> str:
    """A state as one line.

    >>> state_line(State(type=StateType.RUNNING, name="Running"))
    'Running'
    """
    return f"{state.name}: {state.message}" if state.message else str(state.name)


def exit_code(state: State) -> int:
    """What ``gradus run`` would have ended with.

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
