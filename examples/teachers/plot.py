"""The accuracy of every model of runs of `teachers.yaml` on both tasks, as a picture and a table.

python plot.py runs/s0 runs/s1 runs/s2 --out teachers.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure

from gradus.flows.compare.report.figures import HUES, INK, RC

TASKS = {"sums": "sums of 2 to 4 numbers", "sort": "sorting digits"}


def accuracies(run: Path) -> dict[str, dict[str, float]]:
    """stage -> task -> held-out accuracy after it. Raises: SystemExit where the run is not done."""
    file = run / "summary.json"
    if not file.is_file():
        raise SystemExit(f"{run} has no {file.name}: let it finish first")
    rows = json.loads(file.read_text())["tasks"]
    return {row["after"]: {task: each["accuracy"] for task, each in row["tasks"].items()} for row in rows}


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """A line for every stage: mean, lowest and highest over the runs."""
    lines = ["| after | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for stage in runs[0]:
        found = [[run[stage][task] for run in runs] for task in TASKS]
        cells = [f"{fmean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in found]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(runs: list[dict[str, dict[str, float]]], out: Path) -> None:
    """Bars of the means, a dot for every run."""
    stages = [stage for stage in runs[0] if stage != "start"]
    with matplotlib.rc_context({**RC, "svg.hashsalt": "teachers"}):
        figure = Figure((7.5, 2.8), layout="constrained")
        for place, (task, title) in enumerate(TASKS.items(), 1):
            axes = figure.add_subplot(1, 2, place)
            values = [[run[stage][task] for run in runs] for stage in stages]
            colours = [HUES[5] if stage == "student" else HUES[1] for stage in stages]
            axes.barh(stages, [fmean(each) for each in values], color=colours)
            for row, each in enumerate(values):
                axes.plot(each, [row] * len(each), "o", color=INK, markersize=3)
            axes.set(title=title, xlim=(0, 1), xlabel="held-out accuracy")
            axes.invert_yaxis()
        figure.savefig(out, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path("teachers.svg"))
    options = parser.parse_args()
    runs = [accuracies(run) for run in options.runs]
    print(table(runs))
    picture(runs, options.out)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
