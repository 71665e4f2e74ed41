"""A gradus home for tests whose Prefect database is already made, because making one takes seconds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parent.parent

MAKE_DATABASE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def clean_environment(home: Path) -> dict[str, str]:
    """This environment, without any Prefect in it, for a gradus home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRADUS"))}
    return kept | {"GRADUS_HOME": str(home), "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


def new_home(factory: pytest.TempPathFactory) -> Path:
    """A fresh home with an empty Prefect database, which is made once for all workers of a test session."""
    home, base = factory.mktemp("gradus"), factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    ready = shared / "empty-prefect.db"
    with (shared / "empty-prefect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            making = shared / "making" / "prefect.db"
            making.parent.mkdir()
            url = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{making}"}
            subprocess.run([sys.executable, "-c", MAKE_DATABASE], env=clean_environment(home) | url, check=True)
            with contextlib.closing(sqlite3.connect(making)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the one file is all of it
            making.rename(ready)
    (home / "prefect").mkdir(mode=0o700)
    shutil.copy(ready, home / "prefect" / "prefect.db")
    return home


def servers_of(home: Path) -> list[psutil.Process]:
    """Every server process that works in this home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(part.endswith("flows/serve.py") for part in process.info["cmdline"] or []):
            try:
                if Path(process.cwd()) == home / "prefect":
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
    return found


def end_servers(home: Path) -> None:
    """Leave none behind."""
    for process in servers_of(home):
        process.kill()
