"""Paths and commands as a person can paste them into a shell in the current folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any


def shown_path(path: Any) -> str:
    """A path as short as possible: relative if it is below the current folder."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def runs_option(runs_dir: Path) -> str:
    """`` --runs DIR`` for a command to be typed in the current folder; empty for the default folder."""
    return "" if runs_dir.absolute() == Path("runs").absolute() else f" --runs {shlex.quote(shown_path(runs_dir))}"


def gradus_command(*words: Any, runs: Path | None = None) -> str:
    """A command of gradus, its words quoted for the shell, on the runs in a folder.

    >>> gradus_command("sample", "runs/a b", "What's 2+2?")
    'gradus sample \\'runs/a b\\' \\'What\\'"\\'"\\'s 2+2?\\''
    """
    return shlex.join(["gradus", *map(str, words)]) + (runs_option(runs) if runs is not None else "")
