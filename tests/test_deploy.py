"""Deployments, for real: a server, a process worker, runs that it is given, limits, schedules, cancelling."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flow_runs import STAGE_CONFIGS, api, task_states
from flow_runs import home as home  # the fixture
from prefect_home import REPOSITORY
from test_execution import pipeline, write_task

from flows import server
from pipeline import yaml_text
from pipeline.checkpoint import checkpoints_in
from pipeline.files import read_json
from pipeline.runs import RunFolder

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
POOL = "gpus"
PREFECT = str(Path(sys.executable).with_name("prefect"))
QUICK = [{"stage": "sft", "steps": 2}]
LONG = [{"stage": "sft", "steps": 2}, {"stage": "dapo", "group_size": 3, "steps": 20_000}]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def gradus(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)


def make_pool(name: str, kind: str = "process", **more: Any) -> None:
    templates = api("/collections/views/aggregate-worker-metadata")
    template = next(group[kind] for group in templates.values() if kind in group)["default_base_job_configuration"]
    api("/work_pools/", {"name": name, "type": kind, "base_job_template": template, **more})


@pytest.fixture(scope="module")
def pool(home: Path) -> str:
    """A pool with room for one run at a time, on a server that has the services for it."""
    server.ensure_server(deployments=True)
    make_pool(POOL, concurrency_limit=1)
    return POOL


@pytest.fixture(scope="module")
def worker(pool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A process worker as a user starts it; what it prints."""
    log = tmp_path_factory.mktemp("worker") / "log"
    users = {name: value for name, value in environment().items() if not name.startswith(("PREFECT", "GRADUS_PREFECT"))}
    users |= {"PREFECT_API_URL": os.environ["PREFECT_API_URL"], "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [PREFECT, "worker", "start", "--pool", pool, "--name", "tester"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=users, stdout=output, stderr=output, cwd=log.parent)
    yield log
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    psutil.wait_procs(family, 30)


def write_config(folder: Path, stages: list[dict], name: str = "tiny") -> Path:
    write_task(folder)
    config = pipeline(stages, rewards=[{"reward": "exact_answer"}], checkpoints={"every_steps": 5}, name=name)
    (folder / "tiny.yaml").write_text(yaml_text.dump(config.model_dump(mode="json", exclude_defaults=True)))
    return folder / "tiny.yaml"


def flow_run_id(said: str) -> str:
    found = re.search(r"flow-run/([0-9a-f-]{36})", said)
    assert found, said
    return found[1]


def state(flow_run: str) -> dict[str, Any]:
    return api(f"/flow_runs/{flow_run}")["state"]


def wait_until(true: Callable[[], Any], seconds: float, what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
    return found


def begun(run: Path, log: Path, label: str = "02-dapo") -> None:
    wait_until(lambda: checkpoints_in(run / "stages" / label), 150, log.read_text)


def test_a_worker_runs_what_is_submitted_as_gradus_run_does(worker: Path, tmp_path: Path) -> None:
    write_config(tmp_path, QUICK)
    done = gradus(tmp_path, "run", "tiny.yaml", "--on", POOL)
    assert done.returncode == 0, done.stdout + done.stderr + worker.read_text()
    assert "Running" in done.stdout and "prepared: the policy's accuracy" in done.stdout, "it follows states and log"
    run = RunFolder(tmp_path / "runs" / "tiny", STAGE_CONFIGS)
    assert run.state() == "done" and run.holder() is None
    given, record = flow_run_id(done.stdout), read_json(run.path / "prefect.json")
    assert record["flow_run_id"] == given, "the flow run that was submitted is the one that shows the stages"
    assert (record["state"], record["outcome"]) == ("Completed", "completed")
    assert state(given)["type"] == "COMPLETED"
    assert task_states(given, 2) == {"prepare": "Completed", "sft": "Completed"}
