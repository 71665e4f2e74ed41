"""A process that works on a run as a launch does, without torch: it holds the lock and appends steps to the journal."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from paths import search_path

WORKER = """
import sys, time
from pathlib import Path
from gradus.pipeline.common import locks
from gradus.pipeline.tracking.journal import Journal
run, stages = Path(sys.argv[1]), sys.argv[2:]
with locks.hold(run):
    journals = [Journal(run / "stages" / stage / "journal.jsonl") for stage in stages]
    for step in range(1, 10_000):
        for journal in journals:
            journal.metrics(step, {"reward/mean": step % 10 / 10, "time/step": 0.1})
        if step == 20:
            print("works", flush=True)
        time.sleep(0.1 if step > 20 else 0.0)
"""


@contextlib.contextmanager
def at_work(run: Path, *stages: str) -> Iterator[subprocess.Popen[str]]:
    """A process that takes steps of these stages (``02-dapo``) of a run until it is killed, or the block ends."""
    command = [sys.executable, "-c", WORKER, str(run), *stages]
    process = subprocess.Popen(command, env={"PYTHONPATH": search_path()}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "works\n"
        yield process
    finally:
        process.kill()
        process.communicate()
