"""The password of gradus's own Prefect server: without it any user of this machine could have a worker run commands.

It lies in gradus's private folder, where launches, and a person at the login page, read it. Prefect sends it from
``PREFECT_API_AUTH_STRING``; a user's server is never sent it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
import shlex
import sys
import urllib.request
import uuid
from pathlib import Path

from gradus.flows.orchestrator.settings import prefect_home

ANSWER_TIMEOUT_SECONDS = 30.0


def password_file() -> Path:
    """The file with the password in one line; nobody else on this machine may read it."""
    return prefect_home() / "password"


def own_password() -> str:
    """What the server asks for, as ``name:password``; made at random once. Raises: OSError."""
    file = password_file()
    with contextlib.suppress(FileNotFoundError):
        if password := file.read_text(encoding="utf-8").strip():
            file.chmod(0o600)
            return password
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(f"gradus:{secrets.token_urlsafe(24)}\n")
    new.replace(file)
    return file.read_text(encoding="utf-8").strip()


def password_mark() -> str:
    """A short hash of the password, by which a running server's is recognised."""
    return hashlib.sha256(own_password().encode()).hexdigest()[:12]


def is_own_server(url: str | None) -> bool:
    """Whether a URL is that of gradus's own server, which this process has been set up for."""
    return url is not None and os.environ.get("GRADUS_PREFECT_API_URL") == url


def login_hint(url: str | None) -> str:
    """How a person gets past the login page of gradus's own server; empty for a user's server.

    >>> login_hint("http://team:4200/api")
    ''
    """
    return f" (it asks once for the line in {password_file()})" if is_own_server(url) else ""


def prefect_command(url: str) -> str:
    """The beginning of a shell command that calls Prefect's own command line with this server."""
    password = f'PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(password_file()))})" ' if is_own_server(url) else ""
    return f"PREFECT_API_URL={url} {password}{shlex.quote(sys.executable)} -m prefect"


def api_headers(url: str) -> dict[str, str]:
    """Headers with which any HTTP client may read from gradus's own server at ``url`` and write to it, for an hour.

    Raises: OSError if it does not answer, or does not know the password.
    """
    client = uuid.uuid4().hex
    basic = {"Authorization": "Basic " + base64.b64encode(own_password().encode()).decode()}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{url}/csrf-token?client={client}", headers=basic)
    with opener.open(request, timeout=ANSWER_TIMEOUT_SECONDS) as answer:
        token = json.load(answer)["token"]
    return {**basic, "Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token, "Content-Type": "application/json"}
