"""MLflow's own variables count where the configuration says nothing, and are written down in the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from command_line import TINY

from gradus.flows.open_run import existing_run, open_run
from gradus.flows.resume_run import plan_resumption
from gradus.pipeline.common.addresses import holds_secret, redacted, refuse_secret
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.loading import LoadedConfig, load_config
from gradus.pipeline.tracking.position import tracking_options
from gradus.stages import discover

SERVER = "http://127.0.0.1:9"
SECRET = "correct-horse"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sums")


def loaded(tracking: str = "", *overrides: str) -> LoadedConfig:
    Path("tiny.yaml").write_text(TINY + tracking)
    return load_config("tiny.yaml", list(overrides), [stage.config for stage in discover().values()])


def of(config: PipelineConfig) -> tuple[str | None, str]:
    return config.tracking.uri, config.tracking.experiment


def test_the_environment_fills_in_what_the_configuration_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(loaded().config) == (SERVER, "sums")
    assert of(loaded("tracking: {samples: 3}\n").config) == (SERVER, "sums")
    assert of(loaded("tracking: {uri: null}\n").config) == (SERVER, "sums")
    assert of(loaded("tracking: {experiment: ours}\n").config) == (SERVER, "ours")
    assert of(loaded("", "tracking.uri=sqlite:///own.db").config) == ("sqlite:///own.db", "sums")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")  # MLflow takes it from the current folder
    assert of(loaded().config) == (f"sqlite:///{Path.cwd()}/own.db", "sums")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert of(loaded().config) == (None, "gradus")


def test_a_run_keeps_what_its_launch_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    run = open_run(loaded(), tmp_path / "runs", "one", discover(), said.append)
    assert said == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:10")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert tracking_options(run.path) == (SERVER, "sums")
    plan_resumption(existing_run(tmp_path / "runs", "one"), None, "none", said.append)
    assert said == [f"MLFLOW_TRACKING_URI=http://127.0.0.1:10 is not used: tracking.uri of the run is {SERVER}"]


def test_a_configuration_that_says_otherwise_wins_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{SECRET}@host")  # it is not used, so it may hold a password
    said: list[str] = []
    own = loaded("tracking: {uri: 'sqlite:///own.db', experiment: ours}\n")
    run = open_run(own, tmp_path / "runs", "one", discover(), said.append)
    assert tracking_options(run.path) == (f"sqlite:///{tmp_path}/runs/own.db", "ours")
    assert said == [
        f"MLFLOW_TRACKING_URI=http://host is not used: tracking.uri of the run is sqlite:///{tmp_path}/runs/own.db",
        "MLFLOW_EXPERIMENT_NAME=sums is not used: tracking.experiment of the run is ours",
    ]
    said.clear()
    same = dataclasses.replace(own, config=own.config.model_copy(deep=True))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/own.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    open_run(same, tmp_path / "runs", "one", discover(), said.append)
    assert said == []


@pytest.mark.parametrize("uri", [f"http://ann:{SECRET}@host", "./mlruns"])
def test_an_address_in_the_environment_that_cannot_be_used_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI in the environment") as refused:
        loaded()
    assert SECRET not in str(refused.value)


SECRETS = [
    f"http://host/?access_token={SECRET}",
    f"https://{SECRET}@host",
    f"postgresql://ann@host/db?options=-c%20password%3D{SECRET}",
    f"postgresql://ann@host/db?sslpassword={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
    f"https://host/#id_token={SECRET}",
    f"https://host/?X-Api-Key={SECRET}&client_secret={SECRET}",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_a_token_or_password_anywhere_in_an_address_is_refused_and_not_shown(uri: str) -> None:
    assert holds_secret(uri)
    with pytest.raises(UserError, match="must not hold a password or a token") as refused:
        refuse_secret(uri, "tracking.uri")
    with pytest.raises(UserError, match="must not hold a password or a token") as loading:
        loaded(f"tracking: {{uri: '{uri}'}}\n")
    assert SECRET not in str(refused.value) + str(loading.value) + redacted(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000/token/mlflow",
        "postgresql://ann@host/db?sslmode=require&passfile=/home/ann/.pgpass&sslkey=/home/ann/key",
        "postgresql://host/db?options=-csearch_path%3Dmlflow",
        "sqlite:////data/password.db",
        "databricks",
        "databricks://profile",
    ],
)
def test_an_address_without_a_secret_is_accepted_and_shown(uri: str) -> None:
    assert not holds_secret(uri)
    assert redacted(uri) == uri.replace("ann@", "")
