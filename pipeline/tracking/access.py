"""Whether the tracking server takes us, asked before any compute is spent; and passwords, kept out of configurations.

A server that does not answer is no reason to stop: records are kept and delivered later. One that answers and refuses
would refuse them for ever, and only the user can put that right. MLflow itself takes seconds to import, so it is asked
in its own protocol, with the credentials that it would find.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError

if TYPE_CHECKING:
    from gradus.pipeline.config.pipeline import TrackingConfig

TIME_LIMIT = 3.0
"""Seconds to wait for the server's answer."""
OTHER_WAYS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
"""Ways to prove who one is that only MLflow itself knows how to go."""
REFUSALS = r"authentication failed|no password supplied|access denied|pg_hba|(role|database|user) .* does not exist"
"""What a data base says that answers and refuses."""


def check_tracking(tracking: TrackingConfig, runs_dir: Path) -> None:
    """The curves have an address, and what answers there takes them. Raises: UserError where it says no."""
    from gradus.pipeline.common.addresses import resolve_uri

    uri, experiment = resolve_uri(tracking.uri, runs_dir), tracking.experiment
    if uri.startswith(("http://", "https://")):
        _check_server(uri, experiment)
    elif not uri.startswith(("sqlite", "databricks")):
        _check_database(uri)


def _check_server(uri: str, experiment: str) -> None:
    import requests

    if any(os.environ.get(name) for name in OTHER_WAYS):
        return
    user, password = _credentials()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token and not (user and password) else {}
    with contextlib.suppress(requests.RequestException):
        answer = requests.get(
            f"{uri}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": experiment},
            auth=(user, password) if user and password else None,
            headers=headers,
            timeout=TIME_LIMIT,
        )
        if answer.status_code in (401, 403):
            who = f"as {user!r}" if user and password else "with a token" if token else "without user name and password"
            raise UserError(
                "the MLflow server refuses access",
                where=f"tracking.uri, {uri}",
                got=f"{answer.status_code} {answer.reason}, asked {who}",
                fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials, to those of "
                f"who may use the experiment {experiment!r}; without tracking.uri curves stay on this machine",
            )


def _credentials() -> tuple[str | None, str | None]:
    """User name and password as MLflow finds them: the environment first, then ``~/.mlflow/credentials``."""
    file: Any = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        file.read(Path("~/.mlflow/credentials").expanduser())
    names = ("mlflow_tracking_username", "mlflow_tracking_password")
    user, password = (os.environ.get(name.upper()) or file.get("mlflow", name, fallback=None) for name in names)
    return user, password


def _check_database(uri: str) -> None:
    import sqlalchemy

    from gradus.pipeline.common.addresses import redacted

    limit = {"connect_timeout": int(TIME_LIMIT)} if uri.startswith(("postgresql", "mysql")) else {}
    try:
        with sqlalchemy.create_engine(uri, connect_args=limit).connect():
            return
    except ImportError as error:
        raise UserError(
            "the data base of the tracking address needs a driver that is not installed",
            where="tracking.uri",
            got=str(error),
            fix="pip install 'gradus-rl[team]' for PostgreSQL, or track to an MLflow server instead",
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        if not re.search(REFUSALS, said, re.IGNORECASE):
            return  # it does not answer: the records are kept
        raise UserError(
            "the data base of the tracking address refuses access",
            where=f"tracking.uri, {redacted(uri)}",
            got=said[:300],
            fix="set PGPASSWORD, or ~/.pgpass, and check the names of user and data base",
        ) from None
