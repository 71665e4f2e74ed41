"""The file in a run folder that says which flow run shows the run. Reading it imports no Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.records import read_sealed

FLOW_FILE = "prefect.json"
NEEDED = {"flow_run_id", "api_url", "state", "pid", "process", "outcome", "message"}
"""Fields of every whole record; those of earlier versions have no hash that would tell a part of one."""


def flow_record(run_path: Path) -> dict[str, Any]:
    """The latest flow run and, under ``earlier``, the ones before it; empty if there is none or the file is damaged.

    Without it nothing of the run is lost: Prefect's server finds the flow runs of a folder by their parameters.
    """
    try:
        found = read_sealed(run_path / FLOW_FILE) or {}
    except UserError:
        return {}
    return found if found.keys() >= NEEDED else {}
