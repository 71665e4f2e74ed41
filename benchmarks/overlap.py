"""The speed-up by a second core: the quickstart, shortened, on one core and in several ways on two.

    python benchmarks/overlap.py [--seeds 0 1 2] [--share 0.25] [--arms ...]

Every run is one `gradus run quickstart --engine none` in a separate process, pinned to its cores. Arms take turns, so
that a machine that slows down slows all of them. `--share 1` runs the whole quickstart; accuracies can be compared only
then. SFT has a fixed number of steps, so that all arms train alike.

The arms differ in the options of PyTorch's threads inside one operation (`policy.threads`) and of sampling one step
ahead (`async`) in every stage that samples. Evaluation uses two threads wherever it has two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gradus.pipeline.tracking.journal import metric_history  # noqa: E402

STEPS = {"sft": 160, "dapo": 80, "gfpo": 120, "srpo": 80}
SAMPLES = ("dapo", "gfpo", "srpo")
ARMS = {
    "1 core": {"cores": 1, "threads": 1, "async": 0},
    "2 cores": {"cores": 2, "threads": 1, "async": 0},
    "2 threads": {"cores": 2, "threads": 2, "async": 0},
    "async": {"cores": 2, "threads": 1, "async": 1},
    "async, 2 threads": {"cores": 2, "threads": 2, "async": 1},
}
PARTS = ("time/sample", "time/wait", "time/reward", "time/sample_reference", "time/update", "time/step")
"""Seconds of a step; with async, sampling and scoring run in the background, and the step waits for the rest."""
LAUNCH = """\
import os, sys
os.sched_setaffinity(0, map(int, sys.argv.pop(1).split(",")))
from gradus.flows.cli.app import main
main()
"""


def launch(arm: dict[str, int], seed: int, share: float, folder: Path) -> dict[str, Any]:
    """One run: its summary, with the median seconds of a step's parts by stage."""
    steps = {stage: max(8, round(count * share)) for stage, count in STEPS.items()}
    options = [f"seed={seed}", f"policy.threads={arm['threads']}", "stages.sft.until=null", "stages.sft.eval_every=0"]
    options += [f"stages.{stage}.steps={count}" for stage, count in steps.items()]
    options += [f"stages.{stage}.async={arm['async']}" for stage in SAMPLES]
    cores = sorted(os.sched_getaffinity(0))[: arm["cores"]]
    command = [sys.executable, "-c", LAUNCH, ",".join(map(str, cores)), "run", "quickstart", "--engine", "none"]
    command += ["--runs", str(folder), "--name", "run", *(word for option in options for word in ("--set", option))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    for index, stage in enumerate(summary["stages"]):
        curves = metric_history(folder / "run" / "stages" / f"{index + 1:02d}-{stage['name']}" / "journal.jsonl")
        stage["parts"] = {part: statistics.median(curves[part].values()) for part in PARTS if part in curves}
        stage["all_steps"] = sum(curves["time/step"].values())
    return summary


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    """Seconds a step, what they consist of, training time and accuracies, by arm."""
    print(f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}")
    print(
        f"Python {platform.python_version()}, torch {metadata.version('torch')}, {len(next(iter(found.values())))} runs"
    )
    stages = [stage["name"] for stage in next(iter(found.values()))[0]["stages"]]

    def over_runs(arm: str, stage: int, part: str) -> list[float]:
        return [run["stages"][stage]["parts"].get(part, 0.0) for run in found[arm]]

    print("\nSeconds a step, median over runs of each run's median (spread), and times faster than the first arm\n")
    print("| arm |" + "".join(f" {name} |" for name in stages) + " all steps |\n|---|" + "---|" * (len(stages) + 1))
    first = next(iter(found))
    totals = {
        arm: statistics.median(sum(s["all_steps"] for s in run["stages"]) for run in runs)
        for arm, runs in found.items()
    }
    for arm in found:
        cells = []
        for index in range(len(stages)):
            values = over_runs(arm, index, "time/step")
            ratio = statistics.median(over_runs(first, index, "time/step")) / statistics.median(values)
            cells.append(f" {statistics.median(values):.3f} ({min(values):.3f} - {max(values):.3f}), {ratio:.2f} x |")
        print(f"| {arm} |" + "".join(cells) + f" {totals[arm]:.1f} s, {totals[first] / totals[arm]:.2f} x |")
    print("\nWhat a step consists of, median seconds\n")
    print(
        "| arm, stage |"
        + "".join(f" {part.removeprefix('time/')} |" for part in PARTS)
        + "\n|---|"
        + "---|" * len(PARTS)
    )
    for arm in found:
        for index, name in enumerate(stages):
            cells = (f" {statistics.median(over_runs(arm, index, part)):.3f} |" for part in PARTS)
            print(f"| {arm}, {name} |" + "".join(cells))
    print("\nHeld-out accuracy, mean over runs (each), and all training in seconds, evaluation included\n")
    print(
        "| arm |" + "".join(f" after {name} |" for name in stages) + " training |\n|---|" + "---|" * (len(stages) + 1)
    )
    for arm, runs in found.items():
        cells = []
        for index in range(len(stages)):
            values = [run["stages"][index]["accuracy_after"] for run in runs]
            cells.append(f" {statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)}) |")
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"| {arm} |" + "".join(cells) + f" {seconds:.0f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.25, help="share of the quickstart's steps")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", type=Path, help="also write the raw figures here, after every run")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            with tempfile.TemporaryDirectory(prefix="gradus-benchmark-", ignore_cleanup_errors=True) as scratch:
                found[arm].append(launch(ARMS[arm], seed, options.share, Path(scratch)))
            print(f"seed {seed}, {arm}: {found[arm][-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    report(found)


if __name__ == "__main__":
    main()
