"""Runs the parts of the check, each in a process of its own, with a limit of time, and writes what they found.

The processes are forked from one that has imported torch and transformers and has never touched the device: that saves
seconds a part, and an error on the device, which spoils it for the rest of its process, ends one part alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from benchmarks.gpu.findings import Findings, Setup, of_part

RESULTS, LOG = "results.jsonl", "log.txt"
PRELOADED = ("torch", "transformers", "datasets", "peft", "gradus.pipeline.execution.train", "benchmarks.workload")


@dataclass(frozen=True)
class Part:
    """A module of this package with a function ``run``."""

    module: str
    seconds: float
    """Its limit."""


STEPS: tuple[tuple[Part, ...], ...] = (
    (Part("environment", 60),),
    # Both are small models, which leave most of a GPU idle, so they share it.
    (Part("chains", 200), Part("agreement", 200)),
    (Part("speed", 200),),
    (Part("operations", 60),),
    (Part("planning", 60),),
)
"""In the order of their worth; those of a group run at the same time."""
NAMES = tuple(part.module for group in STEPS for part in group)


UNUSED = ("mlflow", "prefect")
"""Hidden from the parts, so that the check takes the same way wherever it runs."""


def preload() -> None:
    """Import what the parts need, once."""
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in PRELOADED:
        importlib.import_module(name)


def run_all(setup: Setup, names: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Run the chosen parts within ``seconds``; returns the lines that were written, one a part."""
    began, results = time.monotonic(), list[dict[str, Any]]()
    for group in STEPS:
        chosen = [part for part in group if part.module in names]
        left = seconds - (time.monotonic() - began)
        running = [_Running(part, replace(setup, seconds=min(part.seconds, left))) for part in chosen if left > 5]
        for part in chosen[len(running) :]:
            results.append(_written(setup.out, part.module, "no time left", 0.0, None))
        results += [each.result() for each in running]
        if results and results[0]["part"] == "environment" and results[0]["status"] != "done":
            break  # there is no device to check
    return results


class _Running:
    """A part at work."""

    def __init__(self, part: Part, setup: Setup):
        self.part, self.setup, self.began = part, setup, time.monotonic()
        context = multiprocessing.get_context("fork")
        self.ours, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(part.module, setup, theirs))
        self.process.start()
        theirs.close()

    def result(self) -> dict[str, Any]:
        """Wait for its end, or end it; what it found is kept either way."""
        self.process.join(max(0.0, self.setup.seconds - (time.monotonic() - self.began)))
        error: str | None = None
        if self.process.is_alive():
            status = "cut short"
        elif self.process.exitcode:
            status, error = "failed", f"ended with {self.process.exitcode}"
            if self.ours.poll():
                error = self.ours.recv()
        else:
            status = "done"
        if self.process.is_alive():
            _end(self.process.pid)
        self.process.join()
        return _written(self.setup.out, self.part.module, status, time.monotonic() - self.began, error)


def _work(module: str, setup: Setup, answer: Any) -> None:
    """One part, in its process. Its error goes to the parent in one line, and in full to the log."""
    descriptor = os.open(setup.out / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    try:
        import torch

        if setup.device == "cpu":
            torch.set_num_threads(1)
        importlib.import_module(f"benchmarks.gpu.{module}").run(setup, Findings(module, setup.out))
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines()
        answer.send(f"{type(error).__name__}: {said[0] if said else ''}"[:300])
        sys.exit(1)


def _end(part: int | None) -> None:
    """End a part with everything that it has started."""
    process = psutil.Process(part)
    for each in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _written(out: Path, part: str, status: str, seconds: float, error: str | None) -> dict[str, Any]:
    line: dict[str, Any] = {"part": part, "status": status, "seconds": round(seconds, 1), "error": error}
    line["findings"] = of_part(out, part)
    with (out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line
