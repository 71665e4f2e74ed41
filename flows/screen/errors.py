"""How a command ends: errors become messages and exit codes, tracebacks go to a file."""

from __future__ import annotations

import contextlib
import errno
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

from gradus import __version__
from gradus.flows.screen.view import only_a_view
from gradus.pipeline.common.errors import StageFailed, UserError, memory_ran_out
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.shown import gradus_command, visible

P = ParamSpec("P")

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors by which the system denies something: rights, a read-only or broken file system, open files, memory."""


class CurrentCommand:
    """The state of the running command that error reports need."""

    debug = False
    """Whether tracebacks are printed."""
    folder: Path | None = None
    """The run folder, once there is one."""


def command(
    group: typer.Typer, *, trains: bool = False, **options: Any
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command whose errors become messages and exit codes.

    2: an error of the user; 1: a failed stage, a full disk or an error in gradus; 130, 143 and 129: Ctrl-C, SIGTERM
    and SIGHUP.
    ``trains``: the command's work is not its output, so no error of the terminal ends it. Other commands fail where
    their output cannot be written.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def reported(*args: P.args, **kwargs: P.kwargs) -> None:
            with only_a_view() if trains else contextlib.nullcontext():
                reporting(*args, **kwargs)

        def reporting(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
                if sys.stdout is not None:
                    sys.stdout.flush()
            except (typer.Exit, typer.Abort):
                raise
            except UserError as error:
                _leave(str(error), 2, error)
            except StageFailed as error:
                _leave(" ".join(str(error).split()) + resume_hint("\n"), 1, error)
            except (Interrupted, KeyboardInterrupt) as error:
                code = int(error.code or 0) if isinstance(error, Interrupted) else 130
                _leave(_stopped(), code, error)
            except BrokenPipeError:
                _discard_output()
                raise typer.Exit(1) from None
            except Exception as error:
                if message := full_disk(error):
                    _discard_output()
                    _leave(f"{message}{resume_hint('; free some space, ')}", 1, error)
                if message := refused_by_host(error):
                    _leave(f"{message}{resume_hint(chr(10))}", 1, error)
                text = " ".join(str(error).split())
                line = f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
                kept = f"This is an error in gradus. The traceback is in {_write_traceback()}"
                _leave(f"{line}\n{kept}{resume_hint(chr(10))}", 1, error)

        return group.command(**options)(reported)

    return register


def quiet_libraries() -> None:
    """Turn off progress bars and advice of other libraries; to be called before they are imported."""
    for name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def resume_hint(before: str = "") -> str:
    """How to continue the run of this command, after the text ``before``; empty if it has no run."""
    from gradus.flows.screen.text import CONTINUE_HINT
    from gradus.pipeline.runs.run_folder import RUN_FILE

    folder = CurrentCommand.folder
    if folder is None or not (folder / RUN_FILE).is_file():
        return ""
    return f"{before}{CONTINUE_HINT} {gradus_command('resume', folder.name, runs=folder.parent)}"


def _stopped() -> str:
    """The message of a command that a signal has ended."""
    from gradus.pipeline.runs.run_folder import SUMMARY_FILE

    if CurrentCommand.folder is not None and (CurrentCommand.folder / SUMMARY_FILE).is_file():
        sync = gradus_command("sync", runs=CurrentCommand.folder.parent)
        return f"stopped; the run is complete, and `{sync}` sends MLflow what it may still lack"
    hint = resume_hint("; ")
    return f"stopped: what was finished is kept{hint}" if hint else "stopped"


def full_disk(error: BaseException | None) -> str:
    """The message if a full disk or a quota caused this error, in any library; empty otherwise."""
    from gradus.pipeline.runs.checkpoint import NO_ROOM

    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            where = f" ({error.filename})" if error.filename else ""
            return f"there is no space left on the disk{where}: {error.strerror or error}"
        if any(f"os error {number}" in str(error) for number in NO_ROOM):  # libraries written in Rust
            return f"there is no space left on the disk: {' '.join(str(error).split())[:200]}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def refused_by_host(error: BaseException) -> str:
    """The message if memory ran out, or the system denied a file or a resource; empty otherwise."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    if memory_ran_out(error):
        smaller = "a smaller token_budget or group_size needs less; `gradus plan --hardware` estimates what is needed"
        return f"memory ran out: {text or 'no details'}\n{smaller}"
    return ""


def _discard_output() -> None:
    """Drop what standard output still holds; otherwise writing it would fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, code: int, error: BaseException) -> NoReturn:
    """End the command with a message on standard error, with --debug after the traceback."""
    if CurrentCommand.debug:
        print(visible("".join(traceback.format_exception(error))), file=sys.stderr)
    print(visible(message), file=sys.stderr)
    raise typer.Exit(code) from None


def _write_traceback() -> Path:
    """Write the traceback of the current exception to the run folder, or to a temporary file."""
    text = (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} gradus {__version__}: {' '.join(sys.argv)}\n{traceback.format_exc()}\n"
    )
    if CurrentCommand.folder is not None:
        with contextlib.suppress(OSError):
            path = CurrentCommand.folder / "error.log"
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
    with tempfile.NamedTemporaryFile("wb", prefix="gradus-", suffix=".log", delete=False) as file:
        file.write(text.encode(errors="backslashreplace"))
    return Path(file.name)
