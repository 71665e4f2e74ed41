"""What all benchmarks share: the machine and versions, processes that take turns, and tables in Markdown.

Seconds are CPU seconds of the whole process unless they are called wall seconds. With one thread this is the time that
the work takes on its own core, whatever else the machine is doing. A busy machine still slows caches and memory, so
the systems that are compared take turns, A B A B, and ratios are computed turn by turn.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any


def processor() -> str:
    """The processor's name, where the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(*packages: str) -> str:
    """What the figures were measured on: two lines, the machine and the versions."""
    found = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{processor()}, {os.cpu_count()} cores, {load}; {platform.platform()}\n"
        f"Python {platform.python_version()}, {found}"
    )


def peak_memory() -> int:
    """Bytes: the largest resident set this process has had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024


class Clock:
    """CPU and wall seconds that named parts of the work took, added up until they are taken.

    ``wait`` returns once a device has done what was asked of it; without it, a part's end would be that of the asking.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.wait = wait
        self.totals: dict[str, float] = {}
        self.began: dict[str, tuple[float, float]] = {}

    def start(self, part: str) -> None:
        """``part`` begins."""
        self.wait()
        self.began[part] = time.process_time(), time.perf_counter()

    def stop(self, part: str) -> None:
        """``part`` ends."""
        self.wait()
        cpu, wall = self.began.pop(part)
        self.add(part, time.process_time() - cpu)
        self.add(f"{part} wall", time.perf_counter() - wall)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """The seconds of a block."""
        self.start(part)
        yield
        self.stop(part)

    def add(self, name: str, amount: float) -> None:
        """Anything else that adds up, such as tokens."""
        self.totals[name] = self.totals.get(name, 0.0) + amount

    def take(self) -> dict[str, float]:
        """The sum so far, which is then reset."""
        taken, self.totals = self.totals, {}
        return taken


class Worker:
    """A process of its own that does what it is asked and answers; ``target`` gets its end of the pipe first."""

    def __init__(self, target: Callable[..., None], *arguments: Any, threads: int = 1):
        os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited; later than the import of torch it has no effect
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, request: Any = None) -> Any:
        """Send a request and wait for the answer."""
        self.pipe.send(request)
        return self.answer()

    def answer(self) -> Any:
        """The next answer.

        Raises: SystemExit where the process has ended; it has printed why.
        """
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"{self.process.name} ended without an answer") from None

    def stop(self) -> None:
        """Ask it to end, and wait; its last request is None."""
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(60)
        self.process.terminate()


def alternate(workers: dict[str, Worker], runs: int, request: Any) -> dict[str, list[Any]]:
    """The same request to every worker in turn, ``runs`` times; nobody works while another does."""
    answers: dict[str, list[Any]] = {name: [] for name in workers}
    for _ in range(runs):
        for name, worker in workers.items():
            answers[name].append(worker.ask(request))
    return answers


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median (smallest .. largest)."""
    middle, low, high = (format(f(values), form) for f in (statistics.median, min, max))
    return f"{middle} ({low}..{high})" if len(values) > 1 else middle


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Turn by turn: how many times ``below`` fits into ``above``."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, padded so that it also reads well in a terminal."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[c]) for line in lines) for c in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])
