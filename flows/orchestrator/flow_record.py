"""``prefect.json`` in the run folder: which flow run shows this run, and whether Prefect knows how it ended.

If a process is killed, its flow run and the task it was in stay Running for ever; the next launch of the run finds the
record and corrects that. Every launch is a new flow run, whose page links to those that it continues.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Completed, Crashed, Failed, State
from prefect.utilities.urls import url_for

from gradus.flows.orchestrator.recorded import FLOW_FILE, flow_record
from gradus.pipeline.common.process import process_start
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.runs.run_folder import RunFolder

TAG = "gradus"
"""The tag of every flow run that gradus makes."""
OPEN = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
"""Types of the states of a flow run that has not ended."""


def flow_parameters(run_path: Path) -> dict[str, Any]:
    """The parameters of a flow run that shows this run on this machine."""
    return {"run_dir": str(run_path), "host": socket.gethostname()}


class FlowRecord:
    """The record in a run folder: the latest flow run and, under ``earlier``, the ones before it, oldest first."""

    def __init__(self, run_path: Path):
        self.path = run_path / FLOW_FILE

    def read(self) -> dict[str, Any]:
        """What :meth:`begin` has written; empty if there is no record or it is damaged."""
        return flow_record(self.path.parent)

    def earlier(self) -> list[dict[str, Any]]:
        """Records of the flow runs that the latest one continues, oldest first."""
        return self.read().get("earlier", [])

    def page_of_origin(self, run: RunFolder) -> str:
        """The page of the latest flow run of the run that this one was forked from; empty if there is none."""
        return FlowRecord(run.path.parent / run.origin["run"]).read().get("page", "") if run.origin else ""

    def begin(self, flow_run: FlowRun) -> str:
        """Record that this process has begun a flow run; returns the address of its page."""
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
        self._write(record)
        return page

    def settled(self, state: str) -> None:
        """Record that Prefect has stored the final state of that name."""
        if record := self.read():
            self._write(record | {"state": state})

    def finish(self, outcome: Literal["completed", "failed", "stopped"], message: str) -> None:
        """Record how the work ended, whether or not Prefect has stored it."""
        record = self.read()
        if record and record["pid"] == os.getpid():  # otherwise it is an earlier launch's
            self._write(record | {"outcome": outcome, "message": message})

    def settle(self, api_url: str, note: Callable[[str], None], current: FlowRun | None = None) -> None:
        """Give flow runs whose process has ended the final state that they could not report.

        The caller holds the run's lock. ``current`` is the flow run of this process; when a worker retries one, it has
        a record here already.
        """
        record = self.read()
        known = [*record.get("earlier", []), record] if record else []
        with contextlib.suppress(Exception):  # a server that is away is reported where the flow begins
            self._settle_unrecorded({entry["flow_run_id"] for entry in known})
        for entry in known:
            if entry["state"] or entry["api_url"] != api_url:
                continue
            if current is not None and entry["flow_run_id"] == str(current.id):
                continue
            if entry["process"] is not None and process_start(entry["pid"]) == entry["process"]:
                continue  # this process, which retries the flow run, or another one that still runs
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
            self._write(record)

    def _settle_unrecorded(self, known: set[str]) -> None:
        """Correct flow runs without a record: their launch was killed after Prefect made them, before :meth:`begin`.

        Since then the run's folder may have moved; no launch works on a folder that is no longer there.
        """
        opened = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]), state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN))
        )
        with get_client(sync_client=True) as client:
            for flow_run in client.read_flow_runs(flow_run_filter=opened):
                if self._is_ours(flow_run) and str(flow_run.id) not in known:
                    _force(client, flow_run.id, Crashed(message="The process ended before the work began."))

    def _is_ours(self, flow_run: FlowRun) -> bool:
        """Whether a flow run of this machine shows this run's folder, or one of its name that is gone."""
        run, given = self.path.parent, flow_run.parameters
        if given == flow_parameters(run):
            return True
        folder = Path(str(given.get("run_dir", run)))
        return given == flow_parameters(folder) and folder.name == run.name and not folder.exists()

    def _write(self, record: dict[str, Any]) -> None:
        """Replace the record. A full disk is reported by the work itself, not here."""
        with contextlib.suppress(OSError):
            write_sealed(self.path, record)


def _final_state(record: dict[str, Any]) -> State[Any]:
    """The state in which a recorded flow run has to end."""
    message = record.get("message") or ""
    if record["outcome"] == "completed":
        return Completed(message="Completed; the Prefect server was not available when it ended.")
    if record["outcome"] == "stopped":
        return State(type=StateType.CANCELLED, name="Stopped", message=message)
    if record["outcome"]:
        return Failed(message=message)
    return Crashed(message=f"The process ({record['pid']}) ended without reporting a result.")


def _force(client: SyncPrefectClient, flow_run_id: UUID, state: State[Any]) -> None:
    """Set the final state of a flow run, and of its tasks that are still open."""
    flow_run = client.read_flow_run(flow_run_id)
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))):
        if task_run.state is None or not task_run.state.is_final():
            lost = Crashed(message=state.message) if state.is_completed() else state
            client.set_task_run_state(task_run.id, lost, force=True)
    if flow_run.state is None or not flow_run.state.is_final():
        client.set_flow_run_state(flow_run_id, state, force=True)
