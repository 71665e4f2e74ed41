"""Processes of a test's own that run a short program, and what a test waits for in other processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TRAINER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.client import start_uploader
run = Path({run!r})
handle = start_uploader(run)
stage = Journal(run / "stages/01-first/journal.jsonl")
stage.start("1 first")
for step in range(1, 6):
    stage.metrics(step, {{"reward/mean": step / 7}})
print(handle.process.pid, flush=True)
time.sleep(600)
"""
"""A trainer that has an uploader, writes five steps and waits; to be formatted with ``tests`` and ``run``."""


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until it is true; the limit is a bound against waiting for ever."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def exists(pid: int) -> bool:
    """Whether a process runs (one that has ended but was not collected does not)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def script(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this program until the block ends."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
