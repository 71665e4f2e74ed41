"""How a command ends: errors as words and an exit code, tracebacks in a file."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer

from pipeline import __version__
from pipeline.errors import StageFailed, UserError

P = ParamSpec("P")


class Process:
    """What error reporting must know of the command that is running."""

    debug = False
    folder: Path | None = None
    """The run folder, once there is one."""


def command(group: typer.Typer, **options: Any) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command whose errors end as words and an exit code: 2 the user's, 1 a failed stage, 130 Ctrl-C."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def reported(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except UserError as error:
                _leave(str(error), 2, error)
            except StageFailed as error:
                _leave(" ".join(str(error).split()), 1, error)
            except KeyboardInterrupt as error:
                name = Process.folder.name if Process.folder else ""
                again = f"; finished stages are kept: the same command with --name {name} goes on"
                _leave(f"interrupted{again if name else ''}", 130, error)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except Exception as error:
                text = " ".join(str(error).split())
                line = f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
                _leave(f"{line}\nThis is not your doing. The traceback is in {_write_traceback()}", 1, error)

        return group.command(**options)(reported)

    return register


def quiet_libraries() -> None:
    """Keep other libraries' progress bars and advice off the terminal; before they are imported."""
    for name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _leave(message: str, code: int, error: BaseException) -> NoReturn:
    """End the command with a message on standard error; with --debug the traceback comes first."""
    if Process.debug:
        traceback.print_exception(error)
    print(message, file=sys.stderr)
    raise typer.Exit(code) from None


def _write_traceback() -> Path:
    """Keep the traceback of the current exception in the run folder, or among the temporary files."""
    text = (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} gradus {__version__}: {' '.join(sys.argv)}\n{traceback.format_exc()}\n"
    )
    if Process.folder is not None:
        with contextlib.suppress(OSError):
            path = Process.folder / "error.log"
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            return path
    with tempfile.NamedTemporaryFile("w", prefix="gradus-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(text)
    return Path(file.name)
