"""The cost of the Prefect flow: whole launches with and without it, on stages that do nothing.

    python benchmarks/orchestration.py [--repeat 5]

Every launch is a separate process that imports torch and runs four stages, as `gradus run` does. Its wall time, from
start to exit, is compared with that of the same launch under `--engine none`. Three kinds of launch use the flow:
`first` (no server and no database, as once on each machine), `cold` (no server) and `warm` (the server is running).
Everything happens in a temporary folder, and the server is stopped at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import machine, spread, table  # noqa: E402

LABELS = ("sft", "dapo", "gfpo", "srpo")
GOALS = {"first": 10.0, "cold": 10.0, "warm": 4.0}
"""Seconds that a launch may cost more than one without the flow."""


class Idle:
    """Stages that only hand on a checkpoint and leave a record."""

    def prepare(self, run: Any, observer: Any) -> dict[str, Any]:
        observer.prepared(0.0, (0.0, 0.1))
        return {"checkpoint": "start", "accuracy": 0.0, "interval": [0.0, 0.1], "seconds": 0.0}

    def run_stage(self, run: Any, index: int, parent: str, stage: Any, observer: Any) -> dict[str, Any]:
        config = run.config.stages[index]
        observer.stage_started(config.label, index, len(run.config.stages), 1, 0)
        observer.step_done(config.label, 1, 1, {"reward/mean": 0.0})
        numbers = dict.fromkeys(("accuracy_before", "accuracy_after", "rollouts", "tokens", "seconds"), 0)
        return {"name": config.label, "steps": 1, "interval": [0, 0], "checkpoint": config.label, **numbers}

    def finish(self, run: Any) -> dict[str, Any]:
        return {"name": run.name, "accuracy_start": 0.0, "accuracy_end": 0.0, "seconds": 0.0}


def launch(engine: str, folder: Path) -> None:
    """One launch, in this process."""
    from gradus.flows.order import Execution, PipelineWork, run_plain
    from gradus.pipeline.common.observer import Observer
    from gradus.pipeline.config.pipeline import pipeline_model
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.stages import discover

    stages = discover()
    options = {
        "name": "idle",
        "policy": {"architecture": {"model_type": "llama"}},
        "task": {"source": "reasoning_gym", "dataset": "chain_sum", "demonstrations": "solver"},
        "rewards": [{"reward": "exact_answer"}],
        "stages": [{"stage": label, "steps": 1} for label in LABELS],
    }
    configs = [stage.config for stage in stages.values()]
    config = pipeline_model(configs).model_validate(options)
    run = RunFolder.create(folder, config, f"{engine}-{time.time_ns()}", folder / "idle.yaml", configs)
    run_engine = run_plain
    if engine == "prefect":
        from gradus.flows.orchestrator.server import start_server_in_background

        start_server_in_background()
        from gradus.flows.staged import run_staged

        run_engine = run_staged

    idle = Idle()
    run_engine(run.path, Observer(), PipelineWork(run, stages, Execution(idle.prepare, idle.run_stage, idle.finish)))


def timed(engine: str, folder: Path, environment: dict[str, str]) -> float:
    """Seconds that a launch takes from start to exit."""
    began = time.perf_counter()
    command = [sys.executable, str(Path(__file__)), "--launch", engine, str(folder)]
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - began


def stop(environment: dict[str, str]) -> None:
    """End the server of this benchmark."""
    code = "from gradus.flows.orchestrator.server import stop_server; stop_server()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def measure(repeat: int) -> dict[str, list[float]]:
    """Wall seconds of every kind of launch."""
    seconds: dict[str, list[float]] = {"none": [], "first": [], "cold": [], "warm": []}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRADUS"))}
    with tempfile.TemporaryDirectory(prefix="gradus-benchmark-") as scratch:
        folder = Path(scratch)
        environment = kept | {"HOME": scratch, "PYTHONPATH": str(ROOT / "src"), "GRADUS_HOME": str(folder / "warm-up")}
        timed("none", folder, environment)  # bytecode and disk cache
        for number in range(repeat):
            environment["GRADUS_HOME"] = str(folder / f"home-{number}")
            try:
                seconds["none"].append(timed("none", folder, environment))
                seconds["first"].append(timed("prefect", folder, environment))
                seconds["warm"].append(timed("prefect", folder, environment))
                stop(environment)
                seconds["cold"].append(timed("prefect", folder, environment))
            finally:
                stop(environment)
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """The figures as a table, with what they were measured on."""
    base = statistics.median(seconds["none"])
    rows = []
    for kind, values in seconds.items():
        more = f"{statistics.median(values) - base:.1f}" if kind in GOALS else ""
        rows.append([kind, spread(values, ".1f"), more, f"< {GOALS[kind]:.0f}" if kind in GOALS else ""])
    print(machine("prefect", "torch", "transformers", "fastapi"), end="\n\n")
    print(table(["launch", "seconds, median (smallest..largest)", "more than without the flow", "goal"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="launches of every kind")
    parser.add_argument("--json", type=Path, help="also write the raw seconds here")
    parser.add_argument("--launch", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launch:
        return launch(options.launch[0], Path(options.launch[1]))
    seconds = measure(options.repeat)
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=1) + "\n")
    report(seconds)


if __name__ == "__main__":
    main()
