"""The accuracy, the time and the memory of the quickstart, seed by seed.

    python benchmarks/quickstart.py [--config quickstart] [--seeds 0 1 2] [--runs runs]

Each seed is one `gradus run` in a separate process. Memory is the largest sum of the proportional set sizes (in which
a shared page counts in parts) of the trainer, its child processes and the Prefect server, sampled every second.
"checkpoints" is the share of the stages' time spent on writing checkpoints. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import machine, table  # noqa: E402

from gradus.flows.orchestrator.server import server_status  # noqa: E402
from gradus.pipeline.tracking.journal import metric_history  # noqa: E402


def memory(process: psutil.Process) -> int:
    """Bytes held by a process, its descendants and gradus's own Prefect server right now."""
    total, server = 0, server_status().get("pid")
    members = [process, *process.children(recursive=True), *([psutil.Process(server)] if server else [])]
    for member in members:
        with contextlib.suppress(psutil.Error):
            held = member.memory_full_info()
            total += getattr(held, "pss", 0) or held.rss
    return total


def run(config: str, seed: int, runs: Path) -> dict[str, Any]:
    """One launch; returns its summary with the peak memory in bytes."""
    name = f"{config}-seed-{seed}"
    command = [sys.executable, "-m", "gradus", "run", config, "--name", name, "--runs", str(runs)]
    launched = subprocess.Popen([*command, "--set", f"seed={seed}"], cwd=ROOT, stdout=sys.stderr)
    process, peak = psutil.Process(launched.pid), 0
    while launched.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, memory(process))
        time.sleep(1)
    if launched.returncode:
        sys.exit(launched.returncode)
    journals = (runs / name / "stages").glob("*/journal.jsonl")
    writing = sum(sum(metric_history(journal).get("time/checkpoint", {}).values()) for journal in journals)
    return json.loads((runs / name / "summary.json").read_text()) | {"peak": peak, "writing": writing}


def report(results: list[dict[str, Any]]) -> None:
    """A row a seed: accuracy after every stage, the gain since the first, time and memory."""
    names = [stage["name"] for stage in results[0]["stages"]]
    header = ["seed", *(f"after {name}" for name in names), "since the first", "training", "checkpoints", "peak memory"]
    rows = []
    for result in results:
        after = [stage["accuracy_after"] for stage in result["stages"]]
        gain, minutes = after[-1] - after[0], divmod(round(result["seconds"]), 60)
        cells = [str(result["seed"]), *(f"{accuracy:.3f}" for accuracy in after), f"{gain:+.3f}"]
        share = sum(stage["seconds"] for stage in result["stages"])
        cells += ["{} min {} s".format(*minutes), f"{result['writing'] / share:.1%}", f"{result['peak'] / 1e9:.2f} GB"]
        rows.append(cells)
    print(table(header, rows), end="\n\n")
    print(machine("torch", "transformers", "prefect", "mlflow"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart", help="a packaged configuration's name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    report([run(options.config, seed, options.runs.absolute()) for seed in options.seeds])


if __name__ == "__main__":
    main()
