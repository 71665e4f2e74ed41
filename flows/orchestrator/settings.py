"""Which Prefect this process talks to, and what must be in the environment before Prefect is imported."""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from gradus.pipeline.common.host import private_folder, settle_home, writable

CLIENT_SETTINGS = {
    "DO_NOT_TRACK": "true",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    # With Prefect's defaults a dead server delayed a run of 20 s by almost four minutes.
    "PREFECT_CLIENT_MAX_RETRIES": "1",
    "PREFECT_API_REQUEST_TIMEOUT": "10",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
"""Defaults for this process; settings of the user take precedence."""

IDLE_SERVICES = ("CLEANUP_RECONCILER", "EVENT_LOGGER", "PAUSE_EXPIRATIONS")
"""Services that nothing here needs. Those of Automations run: they cost 1 MB, and a tenth of a second in 90 s."""

DEPLOYMENT_SERVICES = ("CANCELLATION_CLEANUP", "FOREMAN", "LATE_RUNS", "REPOSSESSOR", "SCHEDULER")
"""Services for deployments and workers: schedules, heartbeats, abandoned slots. Off until a deployment is made."""


def gradus_home() -> Path:
    """The folder for what is not part of a run: ``$GRADUS_HOME``, or ``~/.gradus``, or a private temporary folder."""
    if given := os.environ.get("GRADUS_HOME"):
        return Path(given).expanduser().absolute()
    settle_home()
    usual = Path.home().absolute() / ".gradus"
    return usual if writable(usual) else private_folder() / ".gradus"


def home_notes() -> list[str]:
    """A line for the user where gradus's own server keeps its records among temporary files."""
    home = gradus_home()
    if users_api_url() is not None or not home.is_relative_to(Path(tempfile.gettempdir()) / f"gradus-{os.getuid()}"):
        return []
    return [
        f"there is no home folder to write to, so Prefect's records are in {home}; GRADUS_HOME names another folder"
    ]


def prefect_home() -> Path:
    """The folder of gradus's own server: its database, its log, the record of its process."""
    return gradus_home() / "prefect"


def use_own_server(url: str) -> None:
    """Point this process and its children at gradus's own server."""
    os.environ |= {"PREFECT_HOME": str(prefect_home()), "PREFECT_API_URL": url, "GRADUS_PREFECT_API_URL": url}
    os.environ["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"] = "true"
    for name in ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        os.environ.pop(name, None)  # they name profiles that gradus's own home does not have
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [*filter(None, os.environ.get(name, "").split(","))]
        os.environ[name] = ",".join(hosts if "127.0.0.1" in hosts else [*hosts, "127.0.0.1"])


def set_client_defaults() -> None:
    """Set little output and short timeouts, except where the user has set something else."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)


def server_environment(port: int, deployments: bool = False) -> dict[str, str]:
    """The environment of gradus's own server, without any Prefect setting of the user."""
    home, origin = prefect_home(), f"http://127.0.0.1:{port}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{origin}/api",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        # no other web page may read or write here
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{origin},http://localhost:{port}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": f"{home}/ui",  # the installed package may be read-only
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "true",
    }
    idle = IDLE_SERVICES if deployments else (*IDLE_SERVICES, *DEPLOYMENT_SERVICES)
    return inherited | settings | {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in idle}


def users_api_url() -> str | None:
    """The API URL that Prefect would use by itself, by its own order of precedence; None if it has none."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        return None if url == os.environ.get("GRADUS_PREFECT_API_URL") else url
    return _users_setting("url")


def users_credentials() -> tuple[str | None, str | None]:
    """(``user:password``, API key) that Prefect would send to the user's server."""
    names = ("auth_string", "key")
    auth, key = (os.environ.get(f"PREFECT_API_{name.upper()}") or _users_setting(name) for name in names)
    return auth, key


def _users_setting(name: str) -> str | None:
    """A setting of Prefect's group ``api`` from the files that Prefect reads, by its order of precedence."""
    variable = f"PREFECT_API_{name.upper()}"
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser())
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active") or ""
    found = (
        _dotenv(Path(".env")).get(variable),
        profiles.get("profiles", {}).get(active, {}).get(variable),
        _toml(Path("prefect.toml")).get("api", {}).get(name),
        _toml(Path("pyproject.toml")).get("tool", {}).get("prefect", {}).get("api", {}).get(name),
    )
    return next(filter(None, found), None)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _dotenv(path: Path) -> dict[str, str]:
    try:
        pairs = (line.removeprefix("export ").partition("=") for line in path.read_text(encoding="utf-8").splitlines())
        return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}
    except (OSError, ValueError):
        return {}
