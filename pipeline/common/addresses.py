"""Addresses of services: where MLflow tracks to, passwords kept out of configurations, and the Hub's time limit."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from gradus.pipeline.common.errors import UserError

HUB_TIMEOUT_SECONDS = 5.0
"""How long a check waits for an answer from the Hugging Face Hub."""


def resolve_uri(config_uri: str | None, runs_dir: str | Path) -> str:
    """The tracking URI to use: the configured one, or an SQLite file in the runs folder; never relative.

    Raises:
        UserError: it is a folder or a scheme that MLflow does not track to.
    """
    runs_dir = Path(runs_dir).absolute()
    if not config_uri:
        return f"sqlite:///{runs_dir / 'mlflow.db'}"
    if match := re.fullmatch(r"sqlite:///(?!/)(.+)", config_uri):
        return f"sqlite:///{runs_dir / match[1]}"
    if re.match(r"(https?|sqlite|postgresql|mysql|mssql|databricks)(\+\w+)?://.|databricks$", config_uri):
        return config_uri.rstrip("/") if config_uri.startswith("http") else config_uri
    raise UserError(
        "MLflow cannot track to this address",
        where="tracking.uri",
        got=redacted(config_uri),
        expected="http(s)://HOST:PORT, sqlite:///PATH, postgresql://... or mysql://...",
        fix="leave it out to use an SQLite file in the runs folder",
    )


def redacted(uri: str) -> str:
    """``uri`` without user name and password, so that a message may show it."""
    return re.sub(r"//[^/?#]*@", "//", uri)


def holds_secret(uri: object) -> bool:
    """Whether an address contains a password or a token, before its host or among its parameters.

    >>> [holds_secret(uri) for uri in ("http://ann:x@host", "postgresql://ann@host/db", "http://host", None)]
    [True, False, False, False]
    >>> holds_secret("postgresql://host/db?user=ann&password=x")
    True
    """
    if not isinstance(uri, str):
        return False
    try:
        parts = urlsplit(uri)
        named = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
        return parts.password is not None or bool(named & {"password", "passwd", "sslpassword", "token", "api_key"})
    except ValueError:  # not an address at all
        return re.search(r"//[^/?#]*:[^/?#]*@", uri) is not None


def refuse_secret(uri: object, where: str) -> None:
    """Refuse an address with a password: configurations are copied into run folders, to MLflow and to terminals.

    Raises: UserError, which does not repeat the password.
    """
    if holds_secret(uri):
        raise UserError(
            "a tracking address must not hold a password",
            where=where,
            got="an address with a password, which every copy of the configuration would hold",
            expected="the address alone, such as http://HOST:5000 or postgresql://USER@HOST/DATABASE",
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or ~/.mlflow/credentials) for a server, "
            "PGPASSWORD (or ~/.pgpass) for PostgreSQL",
        )
