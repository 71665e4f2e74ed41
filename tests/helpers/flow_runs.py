"""Run folders that are rehearsed as flows, a Prefect server for them, and what that server knows of them."""

from __future__ import annotations

import importlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dry_execution import Rehearsal
from prefect_home import clean_environment, end_servers
from small_pipeline import STAGE_CONFIGS, pipeline

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.password import api_headers
from gradus.flows.order import PipelineWork
from gradus.pipeline.common.files import read_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.stages import discover

LABELS = ["sft", "dapo", "gfpo", "srpo"]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Listener(Observer):
    """Keeps the notes that a user would see."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def open_run(folder: Path, name: str = "run") -> RunFolder:
    config = pipeline([{"stage": label} for label in LABELS])
    return RunFolder.create(folder, config, name, folder / "tiny.yaml", STAGE_CONFIGS)


def work(run: RunFolder, execution: Rehearsal) -> PipelineWork:
    return PipelineWork(run, discover(), execution)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server of these tests' own, and an environment that points at it until they are over."""
    home, saved = tmp_path_factory.mktemp("gradus"), dict(os.environ)
    os.environ.clear()
    os.environ.update(clean_environment(home))
    server.ensure_server()
    yield home
    os.environ.clear()
    os.environ.update(saved)
    end_servers(home)


@pytest.fixture
def staged(home: Path) -> Any:
    """The module, imported as a launch imports it: once the server is known."""
    server.ensure_server()
    return importlib.import_module("gradus.flows.staged")


def api(path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    url = os.environ["PREFECT_API_URL"]
    request = urllib.request.Request(url + path, data, api_headers(url), method=method)
    for attempt in range(5):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == 4:  # a busy SQLite; Prefect's own clients ask again
                raise
            time.sleep(2**attempt)


def make_pool(name: str, kind: str = "process", **more: Any) -> None:
    """A work pool on the server, with the template that Prefect gives this kind."""
    templates = api("/collections/views/aggregate-worker-metadata")
    template = next(group[kind] for group in templates.values() if kind in group)["default_base_job_configuration"]
    api("/work_pools/", {"name": name, "type": kind, "base_job_template": template, **more})


def flow_run(run: RunFolder) -> dict[str, Any]:
    return api(f"/flow_runs/{read_json(run.path / 'prefect.json')['flow_run_id']}")


def task_states(flow_run_id: str, wanted: int) -> dict[str, str]:
    """Task name -> state name, once that many tasks are final: they are recorded from events, a moment later."""
    deadline = time.monotonic() + 120
    while True:
        tasks = api(
            "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        )
        if sum(task["state_type"] in FINAL for task in tasks) >= wanted or time.monotonic() > deadline:
            return {task["name"]: task["state_name"] for task in tasks}
        time.sleep(0.05)


def artifacts(flow_run_id: str) -> dict[str, dict[str, Any]]:
    found = api("/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    return {artifact["key"]: artifact for artifact in found}
