"""A team's set-up without a database: what `compose.yaml` says, and the checks of servers before a launch."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from command_line import TINY
from paths import REPOSITORY
from postgres import free_port
from typer.testing import CliRunner

from gradus.flows.cli import app
from gradus.flows.orchestrator.access import check_prefect
from gradus.pipeline.common.addresses import holds_secret
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.pipeline import TrackingConfig
from gradus.pipeline.tracking.access import check_tracking

TEXT = (REPOSITORY / "compose.yaml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
SECRET = "correct-horse"


def test_every_service_has_a_health_check_and_listens_on_this_machine_only() -> None:
    assert set(SERVICES) == {"postgres", "prefect", "mlflow"}
    for name, service in SERVICES.items():
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
    assert "ports" not in SERVICES["postgres"]  # only the two servers reach it
    assert all(
        SERVICES[name]["depends_on"]["postgres"] == {"condition": "service_healthy"} for name in ("prefect", "mlflow")
    )


def test_no_password_has_a_default() -> None:
    """Compose stops with an error if ``${NAME:?message}`` is not set."""
    secret = re.findall(r"\$\{(\w*(?:PASSWORD|AUTH|SECRET)\w*)(:[-?])?", TEXT)
    assert {name for name, _ in secret} == {"POSTGRES_PASSWORD", "PREFECT_AUTH", "MLFLOW_PASSWORD", "MLFLOW_SECRET"}
    assert {kind for _, kind in secret} == {":?"}
    assert not [uri for uri in re.findall(r"\w[\w+]*://\S+", TEXT) if holds_secret(uri)]


def test_every_variable_is_documented() -> None:
    documented = (REPOSITORY / "docs" / "team-setup.md").read_text()
    assert not [name for name in re.findall(r"\$\{(\w+)", TEXT) if f"`{name}`" not in documented]


class Refusing(BaseHTTPRequestHandler):
    """Answers 401 to every request without ``ann``'s password."""

    def do_GET(self) -> None:
        """Check the password as MLflow and Prefect do."""
        known = "Basic YW5uOmNvcnJlY3QtaG9yc2U="  # base64 of ann:correct-horse
        self.send_response(200 if self.headers.get("Authorization") == known else 401)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of a server that requires a password, in an environment without any setting of the user."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "GRADUS_PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_mlflow_is_asked_with_the_credentials_that_it_would_find(
    refusing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracking = TrackingConfig(uri=refusing)
    with pytest.raises(UserError, match="refuses access") as refused:
        check_tracking(tracking, tmp_path)
    assert "without user name and password" in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-horse")
    with pytest.raises(UserError, match="as 'ann'") as refused:
        check_tracking(tracking, tmp_path)
    assert "wrong-horse" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    check_tracking(tracking, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")  # then MLflow reads its credentials file
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(f"[mlflow]\nmlflow_tracking_password = {SECRET}\n")
    check_tracking(tracking, tmp_path)


def test_prefect_is_asked_with_the_credentials_that_it_would_find(
    refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{refusing}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:wrong-horse")
    with pytest.raises(UserError, match="Prefect server refuses access") as refused:
        check_prefect("prefect")
    assert "wrong-horse" not in str(refused.value)
    check_prefect("none")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"ann:{SECRET}")
    check_prefect("prefect")


def test_a_server_that_does_not_answer_stops_no_run(
    refusing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("PREFECT_API_URL", f"{dead}/api")
    check_prefect("prefect")
    check_tracking(TrackingConfig(uri=dead), tmp_path)


@pytest.mark.parametrize("uri", [f"http://ann:{SECRET}@host:5000", f"postgresql://host/db?user=ann&password={SECRET}"])
def test_an_address_with_a_password_is_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    for arguments in (["check", str(config), "--set", f"tracking.uri={uri}"], ["check", str(config)]):
        result = CliRunner().invoke(app.app, arguments)
        assert result.exit_code == 2 and "must not hold a password" in result.stderr + result.output
        assert SECRET not in result.stderr + result.output
        config.write_text(f"{TINY}tracking:\n  uri: {uri}\n")


def test_prefects_address_with_a_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADUS_PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://ann:{SECRET}@host:4200/api")
    with pytest.raises(UserError, match="must not hold a password") as refused:
        check_prefect("prefect")
    assert SECRET not in str(refused.value)
