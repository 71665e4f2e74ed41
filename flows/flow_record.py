"""``prefect.json`` in the run folder: which flow run shows this run, and whether Prefect knows how it ended.

A killed process leaves its flow run, and the task it was in, Running for ever; the next launch of the run finds the
record and puts that right. Every launch is a flow run of its own, which shows the ones that it goes on from.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Completed, Crashed, Failed, State
from prefect.utilities.urls import url_for

from flows.server import process_start
from pipeline.files import read_json, write_json
from pipeline.runs import RunFolder


class FlowRecord:
    """The record in one run folder: of the latest flow run and, under ``earlier``, of those before it, oldest first."""

    def __init__(self, run_path: Path):
        self.path = run_path / "prefect.json"

    def read(self) -> dict[str, Any]:
        """Empty where there is none; otherwise what :meth:`begin` writes."""
        try:
            return read_json(self.path) or {}
        except ValueError:
            return {}

    def earlier(self) -> list[dict[str, Any]]:
        """Records of the flow runs that the latest one goes on from, oldest first."""
        return self.read().get("earlier", [])

    def page_of_origin(self, run: RunFolder) -> str:
        """The page of the latest flow run of the run that this one was forked from; empty where there is none."""
        return FlowRecord(run.path.parent / run.origin["run"]).read().get("page", "") if run.origin else ""

    def begin(self, flow_run: FlowRun) -> str:
        """This process has begun a flow run; returns the address of its page."""
        page, last = url_for(flow_run) or "", self.read()
        earlier = last.pop("earlier", [])
        record = {
            "flow_run_id": str(flow_run.id),
            "api_url": get_current_settings().api.url,
            "page": page,
            "began": time.strftime("%Y-%m-%d %H:%M:%S"),
            "pid": os.getpid(),
            "process": process_start(os.getpid()),
            "outcome": None,
            "message": "",
            "state": None,
            "earlier": [*earlier, last] if last else earlier,
        }
        write_json(self.path, record)
        return page

    def settled(self, state: str) -> None:
        """Prefect has taken the final state of that name."""
        if record := self.read():
            write_json(self.path, record | {"state": state})

    def finish(self, outcome: Literal["completed", "failed", "stopped"], message: str) -> None:
        """The work is over, whether or not Prefect could be told."""
        record = self.read()
        if record and record["pid"] == os.getpid():  # not an earlier launch's, where this one had no flow run
            write_json(self.path, record | {"outcome": outcome, "message": message})

    def settle(self, api_url: str, note: Callable[[str], None]) -> None:
        """Give flow runs whose process is gone the final state that they could not report."""
        record = self.read()
        for entry in [*record.get("earlier", []), record] if record else []:
            if entry["state"] or entry["api_url"] != api_url:
                continue
            if entry["process"] is not None and process_start(entry["pid"]) == entry["process"]:
                continue  # this very process, which tries again, or one that still runs
            state = _final_state(entry)
            try:
                with get_client(sync_client=True) as client:
                    _force(client, UUID(entry["flow_run_id"]), state)
            except ObjectNotFound:
                pass  # deleted in the meantime
            except Exception as error:
                note(f"an earlier flow run of this run stays open in Prefect ({type(error).__name__})")
                return
            entry["state"] = state.name
            write_json(self.path, record)


def _final_state(record: dict[str, Any]) -> State[Any]:
    message = record.get("message") or ""
    if record["outcome"] == "completed":
        return Completed(message="Completed; the server was away when it ended.")
    if record["outcome"] == "stopped":
        return State(type=StateType.CANCELLED, name="Stopped", message=message)
    if record["outcome"]:
        return Failed(message=message)
    return Crashed(message=f"The process that ran it ({record['pid']}) ended without a word.")


def _force(client: SyncPrefectClient, flow_run_id: UUID, state: State[Any]) -> None:
    """Set the final state of a flow run, and of its tasks that are still open."""
    flow_run = client.read_flow_run(flow_run_id)
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))):
        if task_run.state is None or not task_run.state.is_final():
            lost = Crashed(message=state.message) if state.is_completed() else state
            client.set_task_run_state(task_run.id, lost, force=True)
    if flow_run.state is None or not flow_run.state.is_final():
        client.set_flow_run_state(flow_run_id, state, force=True)
