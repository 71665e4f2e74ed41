"""A team's two servers on a private PostgreSQL, started by the very commands and settings of ``compose.yaml``.

Only addresses and folders are replaced by ones of this machine. What Docker adds (images, volumes, networks) is not
covered.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from paths import REPOSITORY
from postgres import Cluster, cluster, free_port

COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
START_LIMIT = 400.0
"""Seconds until both servers answer; some 40 on quiet cores, with all tables to be made."""


def interpolated(text: str, values: dict[str, str]) -> str:
    """``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``, as Compose reads them."""

    def replace(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if values.get(name):
            return values[name]
        if kind == ":-":
            return rest
        raise KeyError(f"{name}: {rest}")

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", replace, text)


@dataclass
class Team:
    """The running servers and every password they know."""

    database: Cluster
    prefect: str
    """URL of the API."""
    mlflow: str
    artifacts: Path
    secrets: dict[str, str]
    """What ``.env`` would hold."""

    @property
    def passwords(self) -> list[str]:
        """Texts that must not be found anywhere."""
        return [self.secrets["PREFECT_AUTH"].partition(":")[2], self.secrets["MLFLOW_PASSWORD"], self.database.password]

    @property
    def client(self) -> dict[str, str]:
        """What a trainer sets."""
        return {
            "PREFECT_API_URL": self.prefect,
            "PREFECT_API_AUTH_STRING": self.secrets["PREFECT_AUTH"],
            "MLFLOW_TRACKING_USERNAME": self.secrets["MLFLOW_ADMIN"],
            "MLFLOW_TRACKING_PASSWORD": self.secrets["MLFLOW_PASSWORD"],
        }


@contextmanager
def team(folder: Path) -> Iterator[Team]:
    """Both servers, until the block ends; ``folder`` is for their artifacts and logs."""
    with cluster("prefect", "mlflow", "mlflow_auth") as database:
        ports = {"prefect": free_port(), "mlflow": free_port()}
        values = {
            "POSTGRES_PASSWORD": database.password,
            "PREFECT_AUTH": f"team:{secrets.token_urlsafe(18)}",
            "MLFLOW_ADMIN": "admin",
            "MLFLOW_PASSWORD": secrets.token_urlsafe(18),
            "MLFLOW_SECRET": secrets.token_urlsafe(18),
        }
        here = {
            "0.0.0.0": "127.0.0.1",
            "postgres:5432": f"127.0.0.1:{database.port}",
            "4200": str(ports["prefect"]),
            "=5000": f"={ports['mlflow']}",
            "/srv/": f"{folder}/",
        }

        def local(text: str) -> str:
            text = interpolated(text, values)
            return re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)

        (folder / "basic_auth.ini").write_text(local(COMPOSE["configs"]["basic_auth"]["content"]))
        servers = [_start(name, local, folder) for name in ports]
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        try:
            for server, health in zip(
                servers, (f"{urls['prefect']}/api/health", f"{urls['mlflow']}/health"), strict=True
            ):
                _wait(server, health, folder)
            yield Team(database, f"{urls['prefect']}/api", urls["mlflow"], folder / "artifacts", values)
        finally:
            for server in servers:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _start(name: str, local: Any, folder: Path) -> subprocess.Popen[bytes]:
    service = COMPOSE["services"][name]
    program, *arguments = [local(word) for word in service["command"]]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "GRADUS", "PG"))}
    settings = {key: local(value) for key, value in service["environment"].items()}
    home = folder / f"{name}-home"
    home.mkdir()
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            env={**inherited, "HOME": str(home), "PREFECT_HOME": str(home), **settings},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(server: subprocess.Popen[bytes], health: str, folder: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        with suppress(OSError), urllib.request.urlopen(health, timeout=5):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            said = "\n".join(path.read_text(errors="replace")[-1500:] for path in folder.glob("*.log"))
            raise RuntimeError(f"{health} does not answer\n{said}")
        time.sleep(0.3)
