"""What people see: paths and commands that they can paste into a shell, and text from elsewhere, made safe to show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1: escape sequences, bells, carriage returns
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing: text that reads in another order than it is
    "\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f]"  # more line ends, what no encoding has, and invisible tags
)


def shown_path(path: Any) -> str:
    """A path as short as possible: relative if it is below the current folder."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def shown_share(share: float | None, digits: int = 3) -> str:
    """A share with so many digits, or ``none``."""
    return "none" if share is None else f"{share:.{digits}f}"


def runs_option(runs_dir: Path) -> str:
    """`` --runs DIR`` for a command to be typed in the current folder; empty for the default folder."""
    return "" if runs_dir.absolute() == Path("runs").absolute() else f" --runs {shlex.quote(shown_path(runs_dir))}"


def gradus_command(*words: Any, runs: Path | None = None) -> str:
    """A command of gradus, its words quoted for the shell, on the runs in a folder.

    >>> gradus_command("sample", "runs/a b", "What's 2+2?")
    'gradus sample \\'runs/a b\\' \\'What\\'"\\'"\\'s 2+2?\\''
    """
    return shlex.join(["gradus", *map(str, words)]) + (runs_option(runs) if runs is not None else "")


def visible(text: str) -> str:
    r"""The text with every character that could control a terminal, or hide text in it, written as an escape.

    >>> visible("7\x1b[2J\x9b1A\n\u202e8\t\ud800 é")
    '7\\x1b[2J\\x9b1A\n\\u202e8\t\\ud800 é'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
