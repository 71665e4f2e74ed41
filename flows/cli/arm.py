"""The process of an arm: ``python -m gradus.flows.cli.arm NAME RUNS`` is ``gradus resume NAME``, ended with its parent.

Standard input is a pipe that the parent holds and never writes to. When the parent ends in any way, this process gets
the signal that lets the current step finish and be saved.
"""

from __future__ import annotations

import signal
import sys
import threading

from gradus.pipeline.common.process import on_hang_up


def _interrupt() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)  # to the thread that handles interrupts, to end its waiting


def main(name: str, runs: str) -> None:
    """Resume a run until it is complete; exit codes are those of ``gradus resume``."""
    on_hang_up(sys.stdin.fileno(), _interrupt)
    from gradus.flows.cli.app import app

    app(["resume", name, "--runs", runs, "--engine", "none"], prog_name="gradus")


if __name__ == "__main__":
    main(*sys.argv[1:])
