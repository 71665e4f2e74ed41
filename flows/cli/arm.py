"""An arm's own process: ``python -m gradus.flows.cli.arm NAME RUNS``, which is ``gradus resume NAME`` that ends with its parent.

Standard input is a pipe that the parent holds and never writes to. When it ends, however the parent ended, this process
gets the signal that finishes the step in hand and keeps it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through the stream, whose lock the interpreter's own end would wait for
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)  # to the thread that answers signals, so that whatever it waits for ends


def main(name: str, runs: str) -> None:
    """Go on with a run until it is complete; exit codes are those of ``gradus resume``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from gradus.flows.cli.app import app

    app(["resume", name, "--runs", runs, "--engine", "none"], prog_name="gradus")


if __name__ == "__main__":
    main(*sys.argv[1:])
