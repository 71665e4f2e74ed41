"""Folders of the checkout that tests and the processes that they start need."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = REPOSITORY / "src"
"""The folder that ``gradus`` is imported from."""
HELPERS = REPOSITORY / "tests" / "helpers"


def search_path(*folders: Path) -> str:
    """The value of PYTHONPATH with which a child process finds ``gradus`` and these folders."""
    return os.pathsep.join(map(str, (SOURCES, *folders)))
