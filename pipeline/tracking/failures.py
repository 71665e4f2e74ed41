"""What an error of MLflow means for delivery: try again later, skip the journal, or set the event aside."""

from __future__ import annotations

import errno
import re
from importlib import metadata

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
"""Errors of a local folder of artifacts that cannot be written, which is no reason to hold back what comes after."""


class Unreachable(Exception):
    """MLflow cannot take anything now; this pass ends, and a later one tries again."""


class RunMissing(Unreachable):
    """The MLflow run of a journal no longer exists."""


class Undeliverable(Exception):
    """MLflow cannot take this run's journal; the other journals are still delivered."""


def refused(error: Exception) -> bool:
    """Whether MLflow objects to the content, so that sending it again is useless.

    An error without a status comes from the client and concerns the content, unless network or data base raised it.
    """
    status = status_of(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return True
    if status is None:
        return not isinstance(error, OSError | MemoryError) and not type(error).__module__.startswith("sqlalchemy")
    return 400 <= status < 500 and status not in (401, 403, 408, 409, 429)


def status_of(error: Exception) -> int | None:
    """The HTTP status that corresponds to ``error``, or None where there is none."""
    if hasattr(error, "get_http_status_code"):
        return int(error.get_http_status_code())
    return getattr(getattr(error, "response", None), "status_code", None)


def one_line(error: BaseException) -> str:
    """The first line of an error, short enough for a report; of a broken connection, only its cause."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    if isinstance(root, OSError) and str(root).strip():
        error = root
    return brief(str(error).strip() or type(error).__name__)


def brief(text: str) -> str:
    """The first line of what MLflow says of an error, short enough for a report.

    It calls the schema of any other version out of date, and proposes a command that fits an older one only.
    """
    text = text.splitlines()[0]
    if found := re.search(r"database schema \(found version \w+, but expected \w+\)", text):
        here = metadata.version("mlflow")
        return (
            f"the database is of another version of MLflow than the installed {here} ({found[0]}); install the version "
            "that made it, or, if that is older, copy the database and run `mlflow db upgrade` with its address"
        )
    return text if len(text) <= 200 else text[:197] + "..."
