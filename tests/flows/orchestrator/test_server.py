"""The loopback Prefect server: started once, reused, restarted, and never confused with another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from paths import REPOSITORY
from prefect_home import clean_environment, end_servers, servers_of

from gradus.flows.orchestrator import server, settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Restore the environment variables that the functions under test change."""
    saved = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A gradus home, whose server is ended after the tests."""
    home = tmp_path_factory.mktemp("gradus")
    yield home
    end_servers(home)


@pytest.fixture
def own(home: Path, environment: None) -> Path:
    os.environ.clear()
    os.environ.update(clean_environment(home))
    return home / "prefect"


def answers(url: str) -> bool:
    """Whether it is up; on a busy machine it may take as long to get there as gradus itself would wait."""
    with urllib.request.urlopen(f"{url}/health", timeout=server.START_TIMEOUT_SECONDS) as answer:
        return answer.status == 200


def test_two_launches_at_once_start_one_server(home: Path) -> None:
    code = "from gradus.flows.orchestrator.server import ensure_server; print(ensure_server())"
    command, environment = [sys.executable, "-c", code], clean_environment(home)
    launches = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    urls = [launch.communicate(timeout=150)[0].strip() for launch in launches]
    assert urls[0] == urls[1]
    assert answers(urls[0])
    assert len(servers_of(home)) == 1, "one server, which outlives the launches"


def test_the_next_launch_reuses_it(own: Path) -> None:
    first = server.ensure_server()
    pid = server.server_status()["pid"]
    again = server.start_server_in_background().result(server.START_TIMEOUT_SECONDS)
    assert again == first == os.environ["PREFECT_API_URL"]
    status = server.server_status()
    assert (status["pid"], status["owns"], status["healthy"]) == (pid, "gradus", True)
    assert 50 < status["memory_mb"] < 600
    assert os.environ["PREFECT_HOME"] == str(own)


def test_a_killed_server_is_started_again_on_the_same_port(own: Path) -> None:
    url = server.ensure_server()
    pid = server.server_status()["pid"]
    os.kill(pid, signal.SIGKILL)
    while server.server_status()["running"]:
        time.sleep(0.01)
    server.revive_server()
    assert answers(url), "a request that is made before the server is up waits and is not refused"
    assert server.server_status()["pid"] != pid
    assert server.ensure_server() == url


def test_a_hung_server_is_replaced(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ensure_server()
    record = json.loads((own / "server.json").read_text())
    os.kill(record["pid"], signal.SIGSTOP)
    monkeypatch.setattr(server, "MISSED_HEALTH_CHECKS", 1)
    (own / "server.json").write_text(json.dumps(record | {"since": 0}))
    assert answers(server.ensure_server())
    assert server.server_status()["pid"] != record["pid"]
    assert not psutil.pid_exists(record["pid"])


def test_stop_ends_it_and_returns_whether_it_was_running(own: Path) -> None:
    server.ensure_server()
    assert server.stop_server()
    assert not server.stop_server()
    status = server.server_status()
    assert not status["running"] and not status["healthy"]
    server.revive_server()
    assert not server.server_status()["running"], "a server that the user stopped stays stopped"


def test_a_process_with_the_recorded_id_but_another_start_is_left_alone(own: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = {"pid": stranger.pid, "started": "another/1", "port": 0, "url": "http://127.0.0.1:9/api"}
        record |= {"since": time.time(), "version": "0"}
        own.mkdir(parents=True, exist_ok=True)
        (own / "server.json").write_text(json.dumps(record))
        assert not server.server_status()["running"]
        assert not server.stop_server()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"pid": 1}'])
def test_an_unreadable_record_counts_as_none(own: Path, record: str) -> None:
    own.mkdir(parents=True, exist_ok=True)
    (own / "server.json").write_text(record)
    assert not server.server_status()["running"]
    assert not server.stop_server()


def test_the_database_equals_the_one_that_prefect_would_make(tmp_path: Path) -> None:
    code = """if True:
        import asyncio, sqlite3
        from pathlib import Path
        from gradus.flows.orchestrator.serve import make_database
        make_database(Path("prefect.db"))
        def tables(): return sorted(sqlite3.connect("prefect.db").execute("select name, sql from sqlite_master"))
        made = tables()
        from prefect.server.database import provide_database_interface
        asyncio.run(provide_database_interface().create_db())
        assert tables() == made and dict(made).keys() > {"flow_run", "task_run", "alembic_version"}, made
    """
    url = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/prefect.db"}
    subprocess.run([sys.executable, "-c", code], env=clean_environment(tmp_path) | url, cwd=tmp_path, check=True)
    assert [file.name for file in tmp_path.glob("prefect.db.*") if file.suffix not in (".db-wal", ".db-shm")] == []


def profile(text: str) -> dict[str, str]:
    return {"profiles.toml": text}


@pytest.mark.parametrize(
    ("variables", "files", "expected"),
    [
        ({"PREFECT_API_URL": "http://team:4200/api"}, {}, "http://team:4200/api"),
        ({}, {".env": "PREFECT_API_URL='http://dot:1/api'\n"}, "http://dot:1/api"),
        ({}, profile('active="a"\n[profiles.a]\nPREFECT_API_URL="http://a/api"'), "http://a/api"),
        ({"PREFECT_PROFILE": "b"}, profile('active="a"\n[profiles.b]\nPREFECT_API_URL="http://b/api"'), "http://b/api"),
        ({}, {"prefect.toml": '[api]\nurl="http://toml/api"'}, "http://toml/api"),
        ({}, {"pyproject.toml": '[tool.prefect.api]\nurl="http://project/api"'}, "http://project/api"),
        ({}, profile('active="ephemeral"\n[profiles.ephemeral]\nPREFECT_SERVER_EPHEMERAL_ENABLED="true"'), None),
        ({}, profile("not toml ["), None),
        ({"PREFECT_API_URL": "http://own/api", "GRADUS_PREFECT_API_URL": "http://own/api"}, {}, None),
    ],
)
def test_the_users_own_prefect_is_found(
    environment: None, tmp_path: Path, variables: dict[str, str], files: dict[str, str], expected: str | None
) -> None:
    os.environ.clear()
    os.environ.update(clean_environment(tmp_path) | {"PREFECT_HOME": str(tmp_path)} | variables)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert settings.users_api_url() == expected
    if expected is not None:
        assert server.ensure_server() == expected
        assert os.environ["PREFECT_HOME"] == str(tmp_path), "used unchanged"
        assert not (tmp_path / "prefect").exists(), "and nothing is started"


def test_settings_of_the_user_take_precedence(environment: None) -> None:
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "7"
    settings.set_client_defaults()
    assert os.environ["PREFECT_CLIENT_MAX_RETRIES"] == "7"


def test_a_proxy_does_not_get_loopback_requests(environment: None, tmp_path: Path) -> None:
    os.environ |= {"GRADUS_HOME": str(tmp_path), "NO_PROXY": "intern"}
    settings.use_own_server("http://127.0.0.1:1/api")
    assert os.environ["NO_PROXY"] == "intern,127.0.0.1"


def test_importing_the_module_is_cheap() -> None:
    heavy = "{'prefect', 'torch', 'pydantic', 'httpx'}"
    code = f"import sys, gradus.flows.orchestrator.server; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert shown.stdout.strip() == "[]"
