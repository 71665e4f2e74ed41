"""Deployments with a real server and a real process worker: runs, limits, schedules, cancelling, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flow_runs import FINAL, STAGE_CONFIGS, api, make_pool, task_states
from paths import REPOSITORY, search_path
from prefect.utilities.templating import apply_values
from small_pipeline import pipeline, write_task
from typer.testing import CliRunner

from gradus.flows.cli import app
from gradus.flows.orchestrator import server
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.files import read_json
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
POOL = "gpus"
QUICK = [{"stage": "sft", "steps": 2}]
LONG = [{"stage": "sft", "steps": 2}, {"stage": "dapo", "group_size": 3, "steps": 20_000}]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}


def gradus(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gradus", *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def pool(home: Path) -> str:
    """A pool for one run at a time, on a server with the services that deployments need."""
    server.ensure_server(deployments=True)
    make_pool(POOL, concurrency_limit=1)
    return POOL


@pytest.fixture(scope="module")
def worker(pool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log of a process worker that is started as a user starts it."""
    log = tmp_path_factory.mktemp("worker") / "log"
    users = {name: value for name, value in environment().items() if not name.startswith(("PREFECT", "GRADUS_PREFECT"))}
    users |= {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    users["PREFECT_WORKER_QUERY_SECONDS"] = "2"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", "tester"]
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
    assert "Running" in done.stdout and "prepared: the policy's accuracy" in done.stdout, "it shows states and log"
    run = RunFolder(tmp_path / "runs" / "tiny", STAGE_CONFIGS)
    wait_until(lambda: run.holder() is None, 60, worker.read_text)  # the last records go to MLflow
    assert run.state() == "done"
    given, record = flow_run_id(done.stdout), read_json(run.path / "prefect.json")
    assert record["flow_run_id"] == given, "the flow run that was submitted is the one that shows the stages"
    assert (record["state"], record["outcome"]) == ("Completed", "completed")
    assert state(given)["type"] == "COMPLETED"
    assert task_states(given, 2) == {"prepare": "Completed", "sft": "Completed"}


def set_state(flow_run: str, kind: str, name: str) -> None:
    """Set a state as the buttons of Prefect's pages do."""
    api(f"/flow_runs/{flow_run}/set_state", {"state": {"type": kind, "name": name}, "force": kind == "SCHEDULED"})


def limit_pool(limit: int | None) -> None:
    api(f"/work_pools/{POOL}", {"concurrency_limit": limit}, "PATCH")


def cancel(flow_run: str, run: RunFolder, log: Path) -> float:
    """Cancel a running run; returns the seconds until its process and all child processes have ended."""
    holder = run.holder()
    assert holder is not None, log.read_text()
    trainer = psutil.Process(int(holder["pid"]))
    family, asked = [trainer, *trainer.children(recursive=True)], time.monotonic()
    set_state(flow_run, "CANCELLING", "Cancelling")
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, [process.cmdline() for process in alive]
    seconds = time.monotonic() - asked
    wait_until(lambda: state(flow_run)["type"] == "CANCELLED", 30, log.read_text)
    return seconds


def test_limits_hold_and_a_cancelled_run_ends_within_seconds_and_can_be_resumed(worker: Path, tmp_path: Path) -> None:
    write_config(tmp_path, LONG, "long")
    limit_pool(2)
    said = call("deploy", str(tmp_path / "tiny.yaml"), "--pool", POOL, "--at-once", "1", "--runs", str(tmp_path / "r"))
    assert said.exit_code == 0 and "1 of it, 2 in the pool" in said.output, said.output
    submit = ["run", str(tmp_path / "tiny.yaml"), "--on", POOL, "--detach", "--runs", str(tmp_path / "r")]
    first = flow_run_id(call(*submit).output)
    begun(tmp_path / "r" / "long", worker)
    run = RunFolder(tmp_path / "r" / "long", STAGE_CONFIGS)

    second = flow_run_id(call(*submit).output)
    wait_until(lambda: state(second)["name"] == "AwaitingConcurrencySlot", 60, lambda: state(second))
    set_state(second, "CANCELLED", "Cancelled")
    limit_pool(1)
    write_config(tmp_path, QUICK, "other")
    third = flow_run_id(call(*submit).output)
    time.sleep(8)  # four queries of the worker
    assert state(third)["name"] in ("Scheduled", "Late"), "the pool has no room"
    assert state(first)["type"] == "RUNNING" and run.state() == "running"

    seconds = cancel(first, run, worker)
    print(f"ended after {seconds:.1f} s")
    assert seconds < 25 and state(first)["name"] == "Stopped" and "gradus resume long" in state(first)["message"]
    assert run.state() == "stopped"
    done = next(step for step, _ in checkpoints_in(run.stage_dir(1)))
    assert [stage.action for stage in plan(run, run.config)] == ["reuse", "resume"]
    wait_until(lambda: state(third)["type"] == "COMPLETED", 150, lambda: (state(third), worker.read_text()))

    # Seconds later the worker itself cancels the flow run again; a retry that began before would be cancelled, too.
    wait_until(lambda: "Cancelled flow run 'long'" in worker.read_text(), 60, worker.read_text)
    time.sleep(2)
    assert state(first)["type"] == "CANCELLED"
    set_state(first, "SCHEDULED", "AwaitingRetry")
    wait_until(
        lambda: checkpoints_in(run.stage_dir(1))[0][0] > done + 5,
        150,
        lambda: f"{state(first)}\n{worker.read_text()}",
    )
    assert {path.parent.name for path in (tmp_path / "r").glob("*/run.json")} == {"long", "other"}, (
        "a retry continues the same run"
    )
    assert task_states(first, 4)["sft"] == "Reused"
    cancel(first, run, worker)
    assert run.state() == "stopped"


def test_a_worker_refuses_before_it_computes(worker: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, QUICK, "without-data")
    assert call("deploy", str(config), "--pool", POOL, "--runs", str(tmp_path / "runs")).exit_code == 0
    (tmp_path / "task.jsonl").unlink()
    deployment = api(f"/deployments/name/staged-pipeline/without-data@{POOL}")
    flow_run = api(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {}})["id"]
    wait_until(lambda: state(flow_run)["type"] in FINAL, 90, lambda: (state(flow_run), worker.read_text()))
    assert (state(flow_run)["type"], state(flow_run)["name"]) == ("FAILED", "Refused")
    assert "task.jsonl" in state(flow_run)["message"] and not (tmp_path / "runs").exists()


def test_a_schedule_makes_runs(pool: str, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, QUICK, "nightly"))
    words = ["deploy", config, "--pool", pool, "--runs", str(tmp_path / "runs"), "--timezone", "Europe/Berlin"]
    assert "schedule: 0 3 * * *" in call(*words, "--cron", "0 3 * * *").output
    deployment = api(f"/deployments/name/staged-pipeline/nightly@{pool}")["id"]

    def scheduled() -> list[Any]:
        return api("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})

    runs = wait_until(scheduled, 90, lambda: "the server's scheduler made no run")
    assert all(run["auto_scheduled"] and run["state_name"] == "Scheduled" for run in runs)
    assert runs[0]["parameters"]["config"]["name"] == "nightly"
    assert call(*words).exit_code == 0, "deployed again without a schedule"
    assert not api(f"/deployments/{deployment}/schedules")


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_templates_for_containers_are_accepted_and_filled(pool: str, tmp_path: Path, kind: str) -> None:
    template = json.loads((REPOSITORY / "deploy" / f"{kind}-pool.json").read_text())
    api("/work_pools/", {"name": f"{kind}s", "type": kind, "base_job_template": template})
    config = str(write_config(tmp_path, QUICK, "boxed"))
    said = call("deploy", config, "--pool", f"{kind}s", "--runs", "/runs", "--job", "image=registry/gradus:2")
    assert said.exit_code == 0, said.output
    deployment = api(f"/deployments/name/staged-pipeline/boxed@{kind}s")
    assert deployment["job_variables"] == {"command": "gradus deployed", "image": "registry/gradus:2"}
    assert deployment["parameters"]["runs"] == "/runs"
    defaults = {key: each.get("default") for key, each in template["variables"]["properties"].items()}
    job = apply_values(template["job_configuration"], {**defaults, **deployment["job_variables"]})
    if kind == "docker":
        assert (job["image"], job["volumes"]) == ("registry/gradus:2", ["/srv/gradus/runs:/runs"])
        return
    spec = job["job_manifest"]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert (container["args"], container["resources"]["limits"]["nvidia.com/gpu"]) == ("gradus deployed", 1)
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "gradus-runs"


def refused(*words: str) -> str:
    said = call(*words)
    assert said.exit_code == 2, said.output
    return said.output


def test_bad_requests_are_refused_with_a_message(pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write_config(tmp_path, QUICK))
    make_pool("cloud", "ecs")
    make_pool("boxes", "docker")
    said = refused("run", config, "--on", "gpu")
    assert "no such work pool" in said and "did you mean `gpus`" in said and "one of boxes, " in said
    assert "a pool of type ecs" in refused("deploy", config, "--pool", "cloud")
    assert "which image" in refused("deploy", config, "--pool", "boxes", "--runs", "/runs")
    assert "absolute path" in refused("deploy", config, "--pool", "boxes", "--job", "image=gradus")
    assert "no job variable `imag`" in refused("run", config, "--on", "boxes", "--runs", "/runs", "--job", "imag=x")
    assert "five fields" in refused("deploy", config, "--pool", pool, "--cron", "at night")
    assert "time zone" in refused("deploy", config, "--pool", pool, "--cron", "0 3 * * *", "--timezone", "Mars/Base")
    assert "object store" in refused("deploy", config, "--pool", pool, "--runs", "s3://bucket/runs")
    assert "object store" in refused("run", config, "--runs", "s3://bucket/runs")
    assert "--on POOL" in refused("run", config, "--detach")
    assert "no flow run to work on" in refused("deployed")
    assert call("deploy", config, "--pool", "boxes", "--runs", "/runs", "--job", "image=gradus:1").exit_code == 0
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert "does not answer" in refused("deploy", config, "--pool", pool)


def call(*words: str) -> Any:
    """Run a command in this process."""
    return CliRunner().invoke(app.app, list(words))
