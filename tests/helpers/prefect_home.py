"""A gradus home of a test's own, with no Prefect of the user's in sight, and what runs in it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from paths import search_path


def clean_environment(home: Path) -> dict[str, str]:
    """This environment, without any Prefect in it, for a gradus home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRADUS"))}
    return kept | {"GRADUS_HOME": str(home), "HOME": str(home), "PYTHONPATH": search_path()}


def servers_of(home: Path) -> list[psutil.Process]:
    """Every server process that works in this home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(part.endswith("flows/orchestrator/serve.py") for part in process.info["cmdline"] or []):
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
