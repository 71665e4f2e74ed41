"""Addresses of services: where MLflow tracks to, passwords kept out of configurations, and the Hub's time limit."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from gradus.pipeline.common.errors import UserError

HUB_TIMEOUT_SECONDS = 5.0
"""How long a check waits for an answer from the Hugging Face Hub."""
SECRET_NAMES = r"(?:password|passwd|passphrase|pwd|secret|token|credential|api[_-]?key|access[_-]?key|signature)"
"""What the name of a parameter contains whose value is a secret."""
TRACKING_VARIABLES = {"uri": "MLFLOW_TRACKING_URI", "experiment": "MLFLOW_EXPERIMENT_NAME"}
"""Option of ``tracking`` -> the environment variable by which MLflow is given the same."""


def tracking_with_environment(tracking: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``tracking``, where MLflow's variables fill in the address and experiment that they leave out.

    A relative path in a variable starts from the current folder, as it does for MLflow. Raises: UserError.
    """
    given = {option: os.environ.get(name) for option, name in TRACKING_VARIABLES.items()}
    found = {option: value for option, value in given.items() if value and tracking.get(option) is None}
    if uri := found.get("uri"):
        where = f"{TRACKING_VARIABLES['uri']} in the environment"
        refuse_secret(uri, where)
        found["uri"] = resolve_uri(uri, Path.cwd(), where)
    return {**tracking, **found}


def unused_environment(tracking: Mapping[str, Any], runs_dir: str | Path) -> list[str]:
    """A line for each of MLflow's variables that asks for something else than the run's options of ``tracking``."""
    lines = []
    for option, name in TRACKING_VARIABLES.items():
        wanted, used = os.environ.get(name), tracking.get(option)
        if wanted and option == "uri":
            used = resolve_uri(used, runs_dir)
            with contextlib.suppress(UserError):  # an address that is not used is no reason to stop
                wanted = resolve_uri(wanted, Path.cwd())
        if wanted and wanted != used:
            lines.append(
                f"{name}={redacted(wanted)} is not used: tracking.{option} of the run is {redacted(str(used))}"
            )
    return lines


def resolve_uri(config_uri: str | None, runs_dir: str | Path, where: str = "tracking.uri") -> str:
    """The tracking URI to use: the configured one, or an SQLite file in the runs folder; never relative.

    Raises:
        UserError: it is a folder or a scheme that MLflow does not track to.
    """
    runs_dir = Path(runs_dir).absolute()
    if not config_uri:
        return f"sqlite:///{runs_dir / 'mlflow.db'}"
    if match := re.fullmatch(r"sqlite:///(?!/)(.+)", config_uri):
        return f"sqlite:///{os.path.normpath(runs_dir / match[1])}"
    if re.match(r"(https?|sqlite|postgresql|mysql|mssql|databricks)(\+\w+)?://.|databricks$", config_uri):
        return config_uri.rstrip("/") if config_uri.startswith("http") else config_uri
    raise UserError(
        "MLflow cannot track to this address",
        where=where,
        got=redacted(config_uri),
        expected="http(s)://HOST:PORT, sqlite:///PATH, postgresql://... or mysql://...",
        fix="leave it out to use an SQLite file in the runs folder",
    )


def portable_uri(uri: str | None, runs_dir: str | Path) -> str:
    """An address as a file in a runs folder holds it: that of a store in the folder, or beside it, moves with it.

    >>> portable_uri("sqlite:////data/runs/mlflow.db", "/data/runs/tiny-compare"), portable_uri(None, "/data/runs")
    ('sqlite:///../mlflow.db', 'sqlite:///mlflow.db')
    >>> portable_uri("sqlite:////shared/team.db", "/data/runs")
    'sqlite:////shared/team.db'
    """
    runs_dir, uri = Path(runs_dir).absolute(), resolve_uri(uri, runs_dir)
    path = Path(uri.removeprefix("sqlite:///"))
    near = uri.startswith("sqlite:///") and path.parent in (runs_dir, runs_dir.parent)
    return f"sqlite:///{os.path.relpath(path, runs_dir)}" if near else uri


def redacted(uri: str) -> str:
    """``uri`` without user name, password and tokens, so that a message may show it.

    >>> redacted("https://ann:x@host/a?access_token=abc&b=1")
    'https://host/a?access_token=...&b=1'
    """
    return re.sub(rf"({SECRET_NAMES}\w*(?:=|%3D))[^&;#\s]*", r"\1...", re.sub(r"//[^/?#]*@", "//", uri), flags=re.I)


def holds_secret(uri: object) -> bool:
    """Whether an address contains a password or a token, before its host or among its parameters.

    A web server's address needs no user name, so anything before its host counts as a token.

    >>> [holds_secret(uri) for uri in ("http://ann:x@host", "postgresql://ann@host/db", "http://host", None)]
    [True, False, False, False]
    >>> [holds_secret(f"postgresql://host/db?{more}") for more in ("password=x", "options=-c%20password%3Dx", "a=b")]
    [True, True, False]
    """
    if not isinstance(uri, str):
        return False
    if re.search(rf"{SECRET_NAMES}\w*\s*=", unquote_plus(unquote_plus(uri)), re.I):
        return True
    try:
        parts = urlsplit(uri)
        return parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None)
    except ValueError:  # not an address at all
        return re.search(r"//[^/?#]*:[^/?#]*@", uri) is not None


def refuse_secret(uri: object, where: str) -> None:
    """Refuse an address with a password or a token: configurations are copied to run folders, MLflow and terminals.

    Raises: UserError, which does not repeat the secret.
    """
    if holds_secret(uri):
        raise UserError(
            "a tracking address must not hold a password or a token",
            where=where,
            got="an address with a password or a token, which every copy of the configuration would hold",
            expected="the address alone, such as http://HOST:5000 or postgresql://USER@HOST/DATABASE",
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or ~/.mlflow/credentials) for a server, "
            "PGPASSWORD (or ~/.pgpass) for PostgreSQL",
        )
