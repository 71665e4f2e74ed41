"""What a worker starts for a flow run of a deployed pipeline: what ``gradus run`` does, shown as that flow run.

The worker passes the id of the flow run in the environment, and the parameters of the flow run say what to train. The
process ends with the exit code of ``gradus run``, and the flow run in the corresponding state.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, State

from gradus.flows import launch
from gradus.flows.open_run import check_name, check_world, load, open_run, own_copies
from gradus.flows.orchestrator.around_flow import flow_settings
from gradus.flows.orchestrator.flow_record import FlowRecord
from gradus.flows.screen.errors import CurrentCommand
from gradus.flows.screen.summary import print_summary
from gradus.flows.screen.text import console, line_printer
from gradus.flows.staged import run_staged
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.loading import LoadedConfig

ID_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""The environment variable in which workers of every type pass the id of the flow run."""
REFUSED = "Refused"
"""Name of the state of a flow run that only the user can correct; nothing was computed."""


def work_on_flow_run(url: str) -> None:
    """Train the run that the flow run in the environment describes. Raises: the same errors as ``gradus run``."""
    flow_run = _given_flow_run(url)
    try:
        _launch(flow_run)
    except UserError as error:
        _settle(url, flow_run, State(type=StateType.FAILED, name=REFUSED, message=str(error)))
        raise
    _settle(url, flow_run, Completed(message="Completed; Prefect does not show all of it."))


def _given_flow_run(url: str) -> FlowRun:
    """The flow run whose id is in the environment. Raises: UserError."""
    try:
        with flow_settings(url), get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(os.environ[ID_VARIABLE]))
    except (KeyError, ValueError, ObjectNotFound) as error:
        expected = f"the id of a flow run of {url} in {ID_VARIABLE}, which Prefect's workers set"
        fix = "use `gradus run`; this command is what a worker calls"
        got = os.environ.get(ID_VARIABLE) or type(error).__name__
        raise UserError("there is no flow run to work on", got=got, expected=expected, fix=fix) from None


def _launch(flow_run: FlowRun) -> None:
    """Open the run that the flow run's parameters describe, train it, and print its summary."""
    asked, screen = flow_run.parameters, console()
    loaded, stages = _load(asked)
    runs = Path(asked["runs"])
    name = asked.get("name") or _run_of(str(flow_run.id), runs)
    check_name(name)
    check_world(loaded, stages, runs, own_copies(runs / name) if name is not None else ())
    folder = open_run(loaded, runs, name, stages, line_printer(screen))
    CurrentCommand.folder = folder.path
    line_printer(screen)(f"run {folder.name} in {folder.path}")

    def engine(run_dir: Path, observer: Observer) -> dict[str, Any]:
        return run_staged(run_dir, observer, flow_run=flow_run)

    print_summary(folder, launch.launch(folder, engine, screen), runs, screen)


def _load(asked: Mapping[str, Any]) -> tuple[LoadedConfig, dict[str, Any]]:
    """The configuration among the parameters, checked like a file in the folder of its source."""
    source = Path(asked["source"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / source.name
        file.write_text(yaml_text.dump(asked["config"]), encoding="utf-8")
        loaded, stages = load(str(file), None, source.parent)
    return LoadedConfig(loaded.config, source, source.parent), stages


def _run_of(flow_run_id: str, runs: Path) -> str | None:
    """The run that this flow run began before a worker retried it; None if it has not begun one."""
    for file in sorted(runs.glob("*/prefect.json")):
        record = FlowRecord(file.parent)
        if any(entry.get("flow_run_id") == flow_run_id for entry in (record.read(), *record.earlier())):
            return file.parent.name
    return None


def _settle(url: str, flow_run: FlowRun, state: State[Any]) -> None:
    """Give the flow run this state if the flow itself has not ended it; the worker handles every other end."""
    with contextlib.suppress(Exception), flow_settings(url), get_client(sync_client=True) as client:
        current = client.read_flow_run(flow_run.id).state
        if current is None or not current.is_final():
            client.set_flow_run_state(flow_run.id, state, force=True)
