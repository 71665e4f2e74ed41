"""Checks, before any compute is spent, that the tracking server accepts this user.

A server that does not answer is no reason to stop: records are kept and delivered later. A server that answers and
refuses would refuse them for ever, and only the user can correct that. Importing MLflow takes seconds, so the server is
asked directly in MLflow's protocol, with the credentials that MLflow would find.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.addresses import redacted, resolve_uri
from gradus.pipeline.common.errors import UserError

if TYPE_CHECKING:
    from gradus.pipeline.config.pipeline import TrackingConfig

ANSWER_TIMEOUT_SECONDS = 3.0
"""How long to wait for the server's answer."""
OTHER_CREDENTIALS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
"""Ways to authenticate that only MLflow itself supports; then nothing is checked."""
REFUSALS = r"authentication failed|no password supplied|access denied|pg_hba|(role|database|user) .* does not exist"
"""Messages of a data base that answers and refuses."""


def check_tracking(tracking: TrackingConfig, runs_dir: Path) -> None:
    """Check the tracking address, and that what answers there accepts this user. Raises: UserError."""
    uri, experiment = resolve_uri(tracking.uri, runs_dir), tracking.experiment
    if uri.startswith(("http://", "https://")):
        _check_server(uri, experiment)
    elif not uri.startswith(("sqlite", "databricks")):
        _check_database(uri)


def _check_server(uri: str, experiment: str) -> None:
    import requests

    options = request_options()
    if options is None:
        return
    with contextlib.suppress(requests.RequestException):
        answer = requests.get(
            f"{uri}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": experiment},
            timeout=ANSWER_TIMEOUT_SECONDS,
            **options,
        )
        if answer.status_code in (401, 403):
            as_user = f"as {options['auth'][0]!r}" if options["auth"] else "without user name and password"
            who = "with a token" if options["headers"] else as_user
            raise UserError(
                "the MLflow server refuses access",
                where=f"tracking.uri, {uri}",
                got=f"{answer.status_code} {answer.reason}, asked {who}",
                fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials, to those of "
                f"who may use the experiment {experiment!r}; without tracking.uri curves stay on this machine",
            )


def request_options() -> dict[str, Any] | None:
    """Options of ``requests`` with which MLflow's server is asked as MLflow would ask it: ``auth`` and ``headers``.

    None where this machine authenticates in a way that only MLflow itself supports.
    """
    if any(os.environ.get(name) for name in OTHER_CREDENTIALS):
        return None
    user, password = _credentials()
    auth, token = (user, password) if user and password else None, os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"auth": auth, "headers": {"Authorization": f"Bearer {token}"} if token and not auth else {}}


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

    limit = {"connect_timeout": int(ANSWER_TIMEOUT_SECONDS)} if uri.startswith(("postgresql", "mysql")) else {}
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
        message = " ".join(str(getattr(error, "orig", None) or error).split())
        if not re.search(REFUSALS, message, re.IGNORECASE):
            return  # no answer: the records are kept until there is one
        raise UserError(
            "the data base of the tracking address refuses access",
            where=f"tracking.uri, {redacted(uri)}",
            got=message[:300],
            fix="set PGPASSWORD, or ~/.pgpass, and check the names of user and data base",
        ) from None
