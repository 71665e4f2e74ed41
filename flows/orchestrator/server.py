"""gradus's own Prefect server on the loopback address: started once, detached, reused by every later launch.

Prefect's own temporary server loses records when two launches overlap, outlives its parent and hangs on Ctrl-C, so
gradus keeps one server under ``~/.gradus`` (or ``$GRADUS_HOME``). If the user's Prefect has an API URL (environment,
profile, ``prefect.toml``), that server is used and nothing is started.

Nothing slow is imported here, and not Prefect: it reads its settings while it is being imported, so they have to be in
place before (``gradus.flows.orchestrator.settings``). The server process itself is ``serve.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any

from gradus.flows.orchestrator.password import own_password, password_file, password_mark
from gradus.flows.orchestrator.settings import (
    prefect_home,
    server_environment,
    set_client_defaults,
    use_own_server,
    users_api_url,
)
from gradus.pipeline.common.locks import file_lock
from gradus.pipeline.common.process import process_start

START_TIMEOUT_SECONDS = 120.0
"""How long a server may take until it answers: 3 s on an idle core, 6 s the first time, when it makes its database."""

PORT_TIMEOUT_SECONDS = 3.0
"""How long to wait for the last server's port before another one is used."""

HEALTH_TIMEOUT_SECONDS = 2.0
"""How long one health check waits for the answer."""

MISSED_HEALTH_CHECKS = 10
"""Health checks that a running server may miss on a busy machine before it counts as hung."""

STOP_TIMEOUTS_SECONDS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
"""The signals that end a server, and how long each may take."""


def ensure_server(deployments: bool = False) -> str:
    """URL of a Prefect API that answers, for this process and its children; starts the server if necessary.

    With ``deployments``, gradus's own server also has the services that schedules and workers need. A server without
    them is restarted on the same port, and has them from then on; runs that it shows survive that.
    Raises: RuntimeError if the server does not start; the message names the log file.
    """
    return _until_healthy(_prepare(deployments))


def start_server_in_background() -> Future[str]:
    """Like :func:`ensure_server`, but waits in a thread, so that the server starts while torch is being imported.

    The environment is complete when this returns, so Prefect may be imported before the server answers.
    """
    ready: Future[str] = Future()

    def wait(url: str) -> None:
        try:
            ready.set_result(_until_healthy(url))
        except BaseException as error:
            ready.set_exception(error)

    try:
        Thread(target=wait, args=(_prepare(),), daemon=True, name="prefect-server").start()
    except (OSError, RuntimeError) as error:
        ready.set_exception(error)
    return ready


def server_status() -> dict[str, Any]:
    """The state of the server that would be used; starts nothing.

    ``owns`` (``gradus`` or ``user``), ``url``, ``running``, ``healthy``; for gradus's own server also ``log``,
    ``password`` (where it is) and, while it runs, ``pid``, ``since`` (seconds since the epoch), ``version`` of Prefect
    and ``memory_mb``.
    """
    if url := users_api_url():
        return {"owns": "user", "url": url, "running": True, "healthy": _healthy(url)}
    record = _read_record()
    running = _alive(record)
    status: dict[str, Any] = {"owns": "gradus", "running": running, "healthy": running and _healthy(record["url"])}
    status |= {"url": None, "log": str(prefect_home() / "server.log"), "password": f"in {password_file()}"}
    if running:
        status |= {key: record[key] for key in ("url", "pid", "since", "version")}
        status["memory_mb"] = _memory_mb(record["pid"])
    return status


def stop_server() -> bool:
    """End gradus's own server; false if none was running. Only a process that gradus started is ever ended."""
    with _locked():
        record = _read_record()
        if record:
            _write_record(record | {"stopped": True})
        return _stop(record)


def revive_server() -> None:
    """Restart gradus's own server if it has died and was not stopped; does not wait for it.

    Requests in the meantime wait in its socket, so that a client only sees a slow answer.
    """
    record = _read_record()
    if users_api_url() is None and record and not record.get("stopped") and not _alive(record):
        with contextlib.suppress(OSError, RuntimeError):
            _prepare()


# --- one launch -------------------------------------------------------------------------------------------------------

_children: list[subprocess.Popen[bytes]] = []  # servers that this process started; it has to reap them


def _prepare(deployments: bool = False) -> str:
    """Complete the environment and make sure that a server runs or is starting; returns its URL at once."""
    url = users_api_url()
    if url is None:
        with _locked():
            record = _read_record()
            wanted = deployments or record.get("deployments", False)
            known = record.get("password") == password_mark()  # an earlier version's server asks for none
            if not known or wanted != record.get("deployments", False) or not _usable(record):
                _stop(record)
                record = _start(record.get("port", 0), wanted)
        url = str(record["url"])
        use_own_server(url)
        os.environ["PREFECT_API_AUTH_STRING"] = own_password()
    set_client_defaults()
    return url


def _usable(record: dict[str, Any]) -> bool:
    """Whether the recorded server answers, or may still be starting, or is only slow."""
    if not _alive(record):
        return False
    starting = time.time() - record["since"] < START_TIMEOUT_SECONDS
    return starting or any(_healthy(record["url"]) for _ in range(MISSED_HEALTH_CHECKS))


def _start(port: int, deployments: bool) -> dict[str, Any]:
    """Start a detached server and record it; the caller holds the lock."""
    folder = prefect_home()
    listener = _listen(port)
    log = folder / "server.log"
    fresh = not log.exists() or log.stat().st_size > 1_000_000
    with listener, log.open("wb" if fresh else "ab") as output:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            # -P: the folder of that file must not come first on the path
            [sys.executable, "-P", str(Path(__file__).absolute().with_name("serve.py")), str(listener.fileno())],
            cwd=folder,  # not the user's folder: Prefect reads .env, prefect.toml and pyproject.toml where it starts
            env=server_environment(port, deployments) | {"PREFECT_SERVER_API_AUTH_STRING": own_password()},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children.append(process)
    record = {
        "pid": process.pid,
        "started": process_start(process.pid),
        "port": port,
        "url": f"http://127.0.0.1:{port}/api",
        "since": time.time(),
        "version": metadata.version("prefect"),
        "deployments": deployments,
        "password": password_mark(),
    }
    _write_record(record)
    return record


def _listen(port: int) -> socket.socket:
    """A listening loopback socket on the port of the last server, so that links stay valid, or on any free port.

    It is bound here and passed to the server, so that no other process can take the port and no request is refused.
    """
    deadline = time.monotonic() + PORT_TIMEOUT_SECONDS
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
            if port == 0:
                raise
        # A killed process is reported as ended before its last thread has released the port.
        time.sleep(0.02)
        port = port if time.monotonic() < deadline else 0


def _until_healthy(url: str) -> str:
    """Wait until gradus's own server answers; the user's server is not waited for."""
    record = _read_record()
    if users_api_url() == url or record.get("url") != url:
        return url
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not _healthy(url):
        log = prefect_home() / "server.log"
        if not _alive(record):
            raise RuntimeError(f"the Prefect server ended while it was starting; see {log}")
        if time.monotonic() > deadline:
            with _locked():
                _stop(record)
            raise RuntimeError(f"the Prefect server did not answer within {START_TIMEOUT_SECONDS:.0f} s; see {log}")
        time.sleep(0.05)
    return url


# --- the record -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the lock of the server's record; the kernel releases it when the process ends."""
    folder = prefect_home()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(OSError):  # an earlier version's; the password itself is private anyway
        folder.chmod(0o700)
    with file_lock(folder / "server.lock"):
        yield


def _read_record() -> dict[str, Any]:
    try:
        record = json.loads((prefect_home() / "server.json").read_text(encoding="utf-8"))
        return record if {"pid", "started", "port", "url", "since", "version"} <= record.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _write_record(record: dict[str, Any]) -> None:
    temporary = prefect_home() / "server.json.new"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(prefect_home() / "server.json")


def _alive(record: dict[str, Any]) -> bool:
    """Whether the recorded process still runs; a later process with the same number does not count."""
    _children[:] = [child for child in _children if child.poll() is None]
    return bool(record) and record["started"] is not None and process_start(record["pid"]) == record["started"]


def _stop(record: dict[str, Any]) -> bool:
    """End the recorded process, by SIGTERM and if necessary SIGKILL; returns whether it was running.

    The caller holds the lock.
    """
    was_alive = _alive(record)
    for kind, timeout in STOP_TIMEOUTS_SECONDS:
        if not _alive(record):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["pid"], kind)
            os.kill(record["pid"], signal.SIGCONT)  # a suspended process would not handle it
        deadline = time.monotonic() + timeout
        while _alive(record) and time.monotonic() < deadline:
            time.sleep(0.02)
    return was_alive


def _healthy(url: str) -> bool:
    """Whether the API answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=HEALTH_TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _memory_mb(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return None
