"""The time of `gradus run quickstart` until its first optimisation step, and what it does until then.

    python benchmarks/startup.py [--repeat 5]

Every launch is a separate process that runs the real command and ends where the first optimisation step would begin.
`none` has no orchestrator, `cold` has to start the loopback Prefect server, and `warm` finds it running. On a busy
machine the wall time depends on other processes too; the CPU seconds of the launching process, without its child
processes, do not. Everything happens in a temporary folder, and the server is stopped at the end. The commands that
should answer at once are timed as well.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"cold": 12.0, "warm": 6.0}
"""Seconds from the command to the first optimisation step."""
PARTS = (
    "interpreter, command line",
    "checks of the configuration",
    "import of the orchestrator",
    "import of torch and transformers",
    "server and start of the flow",
    "data",
    "new policy and its checkpoint",
    "baseline evaluation",
    "set-up of the stage",
)
"""What a launch does, in order."""
ANSWERS = {"--help": 0.5, "check quickstart": 2.0, "plan quickstart": 2.0, "status": 1.0}
"""Commands that compute nothing -> seconds in which they should answer."""


class Clock:
    """Notes how long each part took, in wall and CPU seconds, where the next one begins."""

    def __init__(self, began: float):
        self.wall, self.cpu = began, 0.0
        self.parts: dict[str, tuple[float, float]] = {}

    def end(self, part: str) -> None:
        """What was done since the last call counts as ``part``."""
        wall, cpu = time.time(), time.process_time()
        before = self.parts.get(part, (0.0, 0.0))
        self.parts[part] = before[0] + wall - self.wall, before[1] + cpu - self.cpu
        self.wall, self.cpu = wall, cpu


def watched(owner: Any, name: str, clock: Clock, before: str = "", after: str = "") -> None:
    """Let the clock note what ends where a function is entered, and what ends where it returns."""
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            clock.end(before)
        result = function(*args, **kwargs)
        if after:
            clock.end(after)
        return result

    setattr(owner, name, wrapped)


def launch(engine: str, folder: Path) -> None:
    """One launch, in this process, up to the first optimisation step; prints the parts as JSON."""
    clock, said = Clock(float(os.environ["BENCHMARK_BEGAN"])), os.dup(1)
    os.dup2(2, 1)
    from gradus.flows import launch as launching
    from gradus.flows import open_run, order
    from gradus.flows.cli import app

    watched(open_run, "load", clock, before=PARTS[0])
    watched(open_run, "check_world", clock, after=PARTS[1])
    watched(launching, "_engine", clock, after=PARTS[2])
    opened = order.PipelineWork.open

    def open_work(run_dir: Path | str) -> order.PipelineWork:
        opened(run_dir)
        clock.end(PARTS[3])
        watch_the_work()
        return opened(run_dir)  # again, so that it has the functions that are watched now

    def watch_the_work() -> None:
        from gradus.pipeline.execution import prepare
        from gradus.pipeline.training import trainer

        watched(prepare, "prepare", clock, before=PARTS[4])
        watched(prepare, "build_task", clock, after=PARTS[5])
        watched(prepare, "evaluate", clock, before=PARTS[6], after=PARTS[7])

        def stop(*_: Any) -> None:
            clock.end(PARTS[8])
            import psutil  # here, so that it is not a part of what is timed

            os.write(said, json.dumps(clock.parts).encode())
            for child in psutil.Process().children():
                if "gradus.pipeline.tracking.uploader" in child.cmdline():
                    child.kill()  # it would still import MLflow while the next launch is timed
            os._exit(0)

        trainer.Trainer._train_step = stop  # type: ignore[method-assign]

    order.PipelineWork.open = staticmethod(open_work)  # type: ignore[method-assign, assignment]
    sys.argv = ["gradus", "run", "quickstart", "--runs", str(folder), "--engine", engine]
    app.app()


def timed(engine: str, folder: Path, environment: dict[str, str]) -> dict[str, tuple[float, float]]:
    """The parts of one launch: part -> (wall seconds, CPU seconds of the launching process)."""
    command = [sys.executable, str(Path(__file__)), "--launch", engine, str(folder)]
    environment = environment | {"BENCHMARK_BEGAN": str(time.time())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        sys.exit(done.stderr)
    return {part: tuple(seconds) for part, seconds in json.loads(done.stdout).items()}


def measure(repeat: int) -> dict[str, list[dict[str, tuple[float, float]]]]:
    """Every kind of launch, in turns."""
    found: dict[str, list[dict[str, tuple[float, float]]]] = {"none": [], "cold": [], "warm": []}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRADUS"))}
    with tempfile.TemporaryDirectory(prefix="gradus-benchmark-", ignore_cleanup_errors=True) as scratch:
        environment = kept | {"HOME": scratch, "PYTHONPATH": str(ROOT / "src"), "GRADUS_HOME": f"{scratch}/home"}
        stop = [sys.executable, "-c", "from gradus.flows.orchestrator.server import stop_server; stop_server()"]
        try:
            timed("prefect", Path(scratch) / "first", environment)  # bytecode, disk cache, the server's database
            for number in range(repeat):
                folder = Path(scratch) / str(number)
                found["none"].append(timed("none", folder, environment))
                subprocess.run(stop, env=environment, check=True)
                found["cold"].append(timed("prefect", folder, environment))
                found["warm"].append(timed("prefect", folder, environment))
        finally:
            subprocess.run(stop, env=environment, check=True)
    return found


def answers(repeat: int) -> dict[str, list[float]]:
    """Wall seconds of each command that should answer at once."""
    found: dict[str, list[float]] = {command: [] for command in ANSWERS}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with tempfile.TemporaryDirectory(prefix="gradus-benchmark-") as scratch:
        for turn in range(repeat + 1):
            for command, seconds in found.items():
                began = time.perf_counter()
                call = [sys.executable, "-m", "gradus", *command.split()]
                subprocess.run(call, cwd=scratch, env=environment, check=True, capture_output=True)
                if turn:  # the first one may have to compile
                    seconds.append(time.perf_counter() - began)
    return found


def report(found: dict[str, list[dict[str, tuple[float, float]]]], answered: dict[str, list[float]]) -> None:
    """The figures as tables, with what they were measured on."""
    from benchmarks.measuring import spread

    print(f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}")
    names = ("prefect", "torch", "transformers")
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {metadata.version(name)}" for name in names))
    print("\n| launch | seconds to the first step, median (min..max) | CPU seconds | goal |\n|---|---|---|---|")
    for kind, launches in found.items():
        wall, cpu = ([sum(part[i] for part in parts.values()) for parts in launches] for i in (0, 1))
        goal = f"{GOALS[kind]:.0f}" if kind in GOALS else ""
        print(f"| {kind} | {spread(wall, '.1f')} | {statistics.median(cpu):.1f} | {goal} |")
    print("\n| part: median wall seconds (CPU) |" + "".join(f" {kind} |" for kind in found))
    print("|---|" + "---|" * len(found))
    for part in PARTS:
        cells = []
        for launches in found.values():
            wall, cpu = (statistics.median(parts.get(part, (0.0, 0.0))[i] for parts in launches) for i in (0, 1))
            cells.append(f" {wall:.2f} ({cpu:.2f}) |")
        print(f"| {part} |" + "".join(cells))
    print("\n| command | seconds to the answer, median (min..max) | goal |\n|---|---|---|")
    for command, seconds in answered.items():
        print(f"| gradus {command} | {spread(seconds)} | {ANSWERS[command]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="launches of every kind")
    parser.add_argument("--json", type=Path, help="also write the raw seconds here")
    parser.add_argument("--launch", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launch:
        return launch(options.launch[0], Path(options.launch[1]))
    found = measure(options.repeat)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.path.insert(0, str(ROOT))
    report(found, answers(options.repeat))


if __name__ == "__main__":
    main()
