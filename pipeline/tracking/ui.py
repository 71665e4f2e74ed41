"""Serves MLflow's user interface for a runs folder, on loopback and with few processes.

MLflow's default server takes half a minute, 15 processes and gigabytes of memory; one worker without job execution is
enough to look at curves. A small supervisor (this module, run as a program) owns the server and ends it with the
caller.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO

import psutil

from gradus.pipeline.common.addresses import redacted, resolve_uri
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import file_lock
from gradus.pipeline.common.process import child_environment
from gradus.pipeline.tracking.client import NO_MLFLOW, mlflow_is_installed
from gradus.pipeline.tracking.failures import brief
from gradus.pipeline.tracking.mlflow_run import follow_move
from gradus.pipeline.tracking.position import tracking_options

DEFAULT_PORT = 5000
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "ERROR"}
"""Few processes, and in the log why the server does not start."""
START_TIMEOUT_SECONDS = 180.0
"""How long the server may take to answer, on a busy machine."""


def serve_ui(
    runs_dir: str | Path, port: int | None = None, host: str = "127.0.0.1", uri: str | None = None
) -> tuple[subprocess.Popen[bytes] | None, str]:
    """Start the UI and wait until it answers: (supervisor process, the server's address).

    The server ends with this process, or on SIGTERM to the supervisor.

    ``uri`` defaults to that of the newest run. A tracking server has its own UI: then nothing is started, and
    the result is (None, its address). Without ``port`` the first free one from 5000 on is taken.

    Raises:
        UserError: the requested port is taken, or the server does not start.
    """
    runs_dir = Path(runs_dir).absolute()
    uri = resolve_uri(uri, runs_dir) if uri else newest_uri(runs_dir)
    if uri.startswith(("http://", "https://", "databricks")):
        return None, uri
    if not mlflow_is_installed():
        raise UserError(NO_MLFLOW, got="no package mlflow", fix="pip install mlflow")
    log = runs_dir / "mlflow-ui.log"
    with contextlib.ExitStack() as stack:
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(_store_lock_path(uri, runs_dir)))
            output = stack.enter_context(open(log, "wb"))
        except OSError as error:
            raise UserError(
                "MLflow's pages need a runs folder that can be written: its log and a lock go there",
                where=error.filename or str(runs_dir),
                got=error.strerror or str(error),
                fix="make it writable, or copy the folder to where you may write and name the copy by --runs",
            ) from None
        _ensure_database(uri, output)
        if uri.startswith("sqlite:///"):
            with contextlib.suppress(sqlite3.Error):  # the server says what is wrong with the file
                follow_move(Path(uri.removeprefix("sqlite:///")))
        while True:
            chosen = _free_port(host, port)
            process = _start(_server_command(uri, runs_dir, host, chosen), output)
            try:
                _wait_until_healthy(process, host, chosen, log, uri)
                return process, f"http://{host}:{chosen}"
            except BaseException as error:
                stop_ui(process)
                taken = port is None and _refusal(host, chosen)  # another server was faster: the next port, then
                if not (isinstance(error, UserError) and taken):
                    raise


def _start(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """The supervisor of a server, which writes to ``output``."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "gradus.pipeline.tracking.ui", str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",  # MLflow's server looks for modules where it starts, and the user may have an mlflow.py there
        env=child_environment() | SERVER_ENVIRONMENT,
        start_new_session=True,
    )


def stop_ui(process: subprocess.Popen[bytes]) -> None:
    """End the UI and wait until its process has ended."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def newest_uri(runs_dir: Path) -> str:
    """The store of the newest run. Raises: UserError where MLflow cannot use its address."""
    folders = sorted((path.parent for path in runs_dir.glob("*/config.yaml")), key=lambda path: path.stat().st_mtime)
    return tracking_options(folders[-1])[0] if folders else resolve_uri(None, runs_dir)


def _store_lock_path(uri: str, runs_dir: Path) -> Path:
    path = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else runs_dir / "mlflow.db"
    return path.with_name(path.name + ".lock")


def _ensure_database(uri: str, output: IO[bytes]) -> None:
    """Make an SQLite store that does not exist yet: the server would make one that an interruption leaves unusable."""
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        module = [sys.executable, "-P", "-m", "gradus.pipeline.tracking.uploader"]
        # A failure is in the log, and the server then reports its own.
        subprocess.run(
            [*module, "--make-database", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(),
            check=False,
        )


def _server_command(uri: str, runs_dir: Path, host: str, port: int) -> list[str]:
    artifacts = (runs_dir / "mlartifacts").as_uri()
    store = ["--backend-store-uri", uri, "--default-artifact-root", artifacts, "--artifacts-destination", artifacts]
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    # The plugin is missing where gradus's code was updated and not installed again; then MLflow's own pages do.
    plugin = ["--app-name", "gradus"] if entry_points(group="mlflow.app", name="gradus") else []
    return [sys.executable, "-P", "-m", "mlflow", "server", *store, *address, *plugin]


def _free_port(host: str, wanted: int | None) -> int:
    reason: str | None = None
    for port in [wanted] if wanted is not None else range(DEFAULT_PORT, DEFAULT_PORT + 100):
        if (reason := _refusal(host, port)) is None:
            return port
    fix = "choose another --port, or leave it out to take the next free one"
    raise UserError(f"the UI cannot listen on {host}:{wanted or DEFAULT_PORT}", got=reason, fix=fix)


def _refusal(host: str, port: int) -> str | None:
    """Why nothing can listen on a port now; None where it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _wait_until_healthy(process: subprocess.Popen[bytes], host: str, port: int, log: Path, uri: str) -> None:
    limit = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < limit:
        if process.poll() is not None:
            break
        with (
            contextlib.suppress(OSError, HTTPException),
            urllib.request.urlopen(f"http://{host}:{port}/health", timeout=2) as answer,
        ):
            if answer.status == 200 and _listens(process, port):
                return
        time.sleep(0.1)
    said = _error_in(log.read_text(encoding="utf-8", errors="replace"), uri)
    raise UserError("MLflow's server did not start", where=str(log), got=said, fix="read the log named above")


def _listens(supervisor: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it is this server that listens on a port, and not one that another process has started meanwhile."""
    with contextlib.suppress(psutil.Error):
        for each in psutil.Process(supervisor.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                sockets = each.net_connections("tcp")
                if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
                    return True
    return False


def _error_in(log: str, uri: str) -> str:
    """The message of the last exception that a log shows, or its last line, without gaps for the reader to fill.

    >>> _error_in("Traceback:\\nx.MlflowException: run 'mlflow db upgrade <database_uri>'\\n(see ...)", "sqlite:///a.db")
    "run 'mlflow db upgrade sqlite:///a.db'"
    """
    lines = log.strip().splitlines() or ["the log is empty"]
    raised = [found[1] for line in lines if (found := re.match(r"[\w.]+(?:Error|Exception): (.+)", line))]
    return brief([*lines, *raised][-1].replace("<database_uri>", shlex.quote(redacted(uri))))


def _supervise(parent: int, command: list[str]) -> int:
    """Run ``command`` in its own process group until it ends, this process gets a signal, or the parent has ended."""
    server = subprocess.Popen(command, start_new_session=True)
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, end)
    while server.poll() is None and not ending and os.getppid() == parent:
        time.sleep(0.2)
    for kind, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds or None)
    return 0


if __name__ == "__main__":
    sys.exit(_supervise(int(sys.argv[1]), sys.argv[2:]))
