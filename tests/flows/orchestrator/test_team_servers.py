"""A small run on a team's real servers: PostgreSQL from the system's packages, Prefect and MLflow with passwords.

The run must record the same on them as in the embedded SQLite files, and no password may be recorded anywhere.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import postgres
import pytest
import sqlalchemy
from command_line import TINY
from flow_runs import FINAL
from prefect_home import clean_environment, end_servers
from team_servers import COMPOSE, Team, interpolated, team
from tracking_runs import new_run, new_stage

from gradus.flows.orchestrator.password import api_headers
from gradus.pipeline.common.files import read_json
from gradus.pipeline.runs.same_outcome import CLOCKS
from gradus.pipeline.tracking.position import count_undelivered, read_run_ids
from gradus.pipeline.tracking.uploader import sync_run

LACKING = [name for name in ("psycopg2", "asyncpg", "flask_wtf") if importlib.util.find_spec(name) is None]
MISSING = postgres.missing() or ("the extra `team` is not installed" if LACKING else "")
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING), pytest.mark.timeout(900)]
WRONG = "not-the-password"
OWN = "the password of gradus's own server"
SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Path]]:
    """The folder of a run with default settings, which trains while the team's servers make their tables."""
    folder = tmp_path_factory.mktemp("embedded")

    def run() -> Path:
        gradus(folder, "run", "tiny.yaml")
        deliver_the_rest(folder)
        return folder

    with ThreadPoolExecutor(1) as beside:
        try:
            yield beside.submit(run)
        finally:
            end_servers(folder / "home")


@pytest.fixture(scope="module")
def servers(embedded: Future[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with team(tmp_path_factory.mktemp("team")) as running:
        yield running


def gradus(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run a command in a separate home with a user's ``environment`` variables, and return what it prints."""
    command = [sys.executable, "-m", "gradus", *arguments, "--runs", str(folder / "runs")]
    (folder / "tiny.yaml").write_text(TINY)
    kept = {k: v for k, v in clean_environment(folder / "home").items() if not k.startswith("MLFLOW")}
    options = {"cwd": folder, "env": kept | environment, "capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run(command, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def deliver_the_rest(folder: Path, **environment: str) -> None:
    """A launch waits for MLflow for a limited time, which a busy machine may exceed."""
    if count_undelivered(folder / "runs" / "tiny"):
        gradus(folder, "sync", **environment)


def run_command(servers: Team) -> list[str]:
    return ["run", "tiny.yaml", "--set", f"tracking.uri={servers.mlflow}"]


@pytest.fixture(scope="module")
def on_team(servers: Team, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the same run on the team's servers, and what it printed."""
    folder = tmp_path_factory.mktemp("on-team")
    printed = gradus(folder, *run_command(servers), **servers.client)
    deliver_the_rest(folder, **servers.client)
    return folder, printed


def curves(folder: Path, uri: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """label -> metric -> every (step, value) in MLflow's tables, without metrics of time."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    engine = sqlalchemy.create_engine(uri)
    points = sqlalchemy.text("SELECT key, step, value FROM metrics WHERE run_uuid = :run ORDER BY key, step, value")
    with engine.connect() as connection:
        for label, run_id in read_run_ids(folder / "runs" / "tiny").items():
            found[label] = {}
            for name, step, value in connection.execute(points, {"run": run_id}):
                if not name.startswith(CLOCKS):
                    found[label].setdefault(name, []).append((step, value))
    engine.dispose()
    return found


def states(folder: Path, auth: str) -> dict[str, str]:
    """Task name -> name of its state in Prefect's API, once all are final; the empty name is the flow run itself."""
    record = read_json(folder / "runs" / "tiny" / "prefect.json")
    assert record is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADUS_HOME", str(folder / "home"))
        headers = api_headers(record["api_url"]) if auth == OWN else {"Content-Type": "application/json"}
    if auth != OWN:
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()

    def api(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(record["api_url"] + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    deadline = time.monotonic() + 60
    while True:  # tasks are recorded from events, a moment later
        tasks = api("/task_runs/filter", {"flow_runs": {"id": {"any_": [record["flow_run_id"]]}}})
        flow = api(f"/flow_runs/{record['flow_run_id']}")
        if sum(each["state_type"] in FINAL for each in tasks) >= 3 or time.monotonic() > deadline:
            return {task["name"]: task["state_name"] for task in tasks} | {"": flow["state_name"]}
        time.sleep(0.1)


def test_the_same_run_leaves_the_same_curves_and_states(
    servers: Team, on_team: tuple[Path, str], embedded: Future[Path]
) -> None:
    alone = embedded.result()
    theirs = curves(on_team[0], servers.database.url("mlflow", "postgresql+psycopg2"))
    ours = curves(alone, f"sqlite:///{alone}/runs/mlflow.db")
    assert set(ours) == {"", "01-sft", "02-dapo"}
    assert {"update/loss", "heldout/accuracy"} <= set(ours["02-dapo"])
    assert [len(ours[label]["update/loss"]) for label in ("01-sft", "02-dapo")] == [4, 2]  # every step
    assert theirs == ours
    done = {"prepare": "Completed", "sft": "Completed", "dapo": "Completed", "": "Completed"}
    assert states(on_team[0], servers.secrets["PREFECT_AUTH"]) == states(alone, OWN) == done


def test_the_artifacts_are_in_the_teams_store(servers: Team, on_team: tuple[Path, str]) -> None:
    kept = {path.name for path in servers.artifacts.rglob("*") if path.is_file()}
    assert "config.yaml" in kept
    assert not (on_team[0] / "runs" / "mlflow.db").exists() and not (on_team[0] / "runs" / "mlartifacts").exists()


def test_no_password_is_recorded_anywhere(servers: Team, on_team: tuple[Path, str]) -> None:
    """In run folders, on the terminal and in the databases, where MLflow's own accounts are hashed."""
    folder, printed = on_team
    places = {"terminal": printed.encode()}
    places |= {
        str(path): path.read_bytes() for path in [*folder.rglob("*"), *servers.artifacts.rglob("*")] if path.is_file()
    }
    for name in ("prefect", "mlflow", "mlflow_auth"):
        places[name] = servers.database.run("pg_dump", "--data-only", "--inserts", name).encode()
    assert b"staged-pipeline" in places["prefect"] and b"heldout/accuracy" in places["mlflow"]
    for password in servers.passwords:
        assert not [place for place, content in places.items() if password.encode() in content]


def test_a_wrong_password_is_reported_before_compute(servers: Team, tmp_path: Path) -> None:
    cases = (
        ({"MLFLOW_TRACKING_PASSWORD": WRONG}, ("MLflow server refuses access", "as 'admin'")),
        ({"MLFLOW_TRACKING_PASSWORD": ""}, ("MLflow server refuses access", "without user name and password")),
        ({"PREFECT_API_AUTH_STRING": f"team:{WRONG}"}, ("Prefect server refuses access", "PREFECT_API_AUTH_STRING")),
        ({"PREFECT_API_AUTH_STRING": ""}, ("Prefect server refuses access", "without a password")),
    )

    def refused(wrong: dict[str, str]) -> str:
        return gradus(tmp_path, *run_command(servers), code=2, **{**servers.client, **wrong})

    with ThreadPoolExecutor(2) as beside:
        printed = list(beside.map(refused, [wrong for wrong, _ in cases]))
    for text, (_, expected) in zip(printed, cases, strict=True):
        assert all(words in text for words in expected), text
        assert not [password for password in (WRONG, *servers.passwords) if password in text]
    assert not (tmp_path / "runs" / "tiny").exists()
    right = gradus(tmp_path, "check", "tiny.yaml", "--set", f"tracking.uri={servers.mlflow}", **servers.client)
    assert "is valid" in right


def test_a_database_that_refuses_access_is_reported_before_compute(servers: Team, tmp_path: Path) -> None:
    """Without an MLflow server between: the address holds the user's name, and the environment the password."""
    uri = f"postgresql+psycopg2://{postgres.ADMIN}@127.0.0.1:{servers.database.port}/mlflow"
    check = ["check", "tiny.yaml", "--set", f"tracking.uri={uri}"]
    assert "is valid" in gradus(tmp_path, *check, PGPASSWORD=servers.database.password)
    printed = gradus(tmp_path, *check, code=2, PGPASSWORD=WRONG)
    assert "data base of the tracking address refuses access" in printed and "password authentication failed" in printed
    assert WRONG not in printed
    assert "does not exist" in gradus(
        tmp_path, *check[:-1], f"{check[-1]}x", code=2, PGPASSWORD=servers.database.password
    )


def test_no_record_is_lost_if_the_password_changes_during_a_run(
    servers: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses the uploader, which does not affect training; the records wait for the right password."""
    run = new_run(tmp_path / "runs", uri=servers.mlflow)
    new_stage(run, steps=3).end()
    for name in SECRETS:
        monkeypatch.setenv(name, servers.client[name])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WRONG)
    refused = sync_run(run)
    assert (refused.delivered, refused.rejected, refused.undelivered) == (0, 0, 6)
    assert "401" in refused.message and "gradus sync" in refused.message and WRONG not in refused.message
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", servers.client["MLFLOW_TRACKING_PASSWORD"])
    assert (sync_run(run).delivered, sync_run(run).undelivered) == (6, 0)


def test_the_servers_require_a_password_and_listen_on_this_machine_only(servers: Team) -> None:
    for url in (f"{servers.prefect}/flows/count", f"{servers.mlflow}/api/2.0/mlflow/experiments/search"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, b"{}", {"Content-Type": "application/json"}), timeout=60)
        assert refused.value.code == 401
    assert [port for service in ("prefect", "mlflow") for port in COMPOSE["services"][service]["ports"]] == [
        "${BIND:-127.0.0.1}:4200:4200",
        "${BIND:-127.0.0.1}:5000:5000",
    ]
    assert "ports" not in COMPOSE["services"]["postgres"]
    assert interpolated("${BIND:-127.0.0.1}", dict(os.environ) | {"BIND": ""}) == "127.0.0.1"
