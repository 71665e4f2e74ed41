"""A collapse, provoked by a learning rate that is far too high, with the guard and without it.

    python -m benchmarks.collapse [--lr 1e-3] [--folder runs/collapse]

The quickstart's SFT stage is run once. Two forks then run a DAPO stage with that rate: one without a guard, and one
with ``guard: {}``. Prints what each fork hands over, and draws both validation curves with the guard's event.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradus.pipeline.common.files import read_json
from gradus.pipeline.tracking.journal import metric_history

STEPS, EVERY = 60, 5
ARMS = {"unguarded": [], "guarded": ["stages.dapo.guard={}"]}


def gradus(*arguments: str) -> None:
    """A command of its own, as a user would give it; its output is shown."""
    subprocess.run([sys.executable, "-m", "gradus", *arguments], check=True)


def train(folder: Path, rate: float) -> None:
    """One SFT stage, and two forks from it."""
    ruinous = [f"stages.dapo.{option}" for option in (f"lr={rate}", f"steps={STEPS}", f"eval_every={EVERY}")]
    runs = ["--runs", str(folder), "--engine", "none"]
    short = ["--set", "stages.gfpo.steps=1", "--set", "stages.srpo.steps=1", "--set", "stages.dapo.steps=1"]
    if not (folder / "base" / "summary.json").exists():
        gradus("run", "quickstart", "--name", "base", *short, *runs)
    for arm, options in ARMS.items():
        if not (folder / arm / "summary.json").exists():
            changes = [part for change in [*ruinous, *options] for part in ("--set", change)]
            gradus("fork", "base", "--from", "dapo", "--name", arm, *changes, *runs)


def stage_of(run: Path) -> tuple[dict[str, Any], dict[int, float]]:
    """The record of the ruinous stage, and its accuracy on the validation prompts."""
    (stage,) = run.glob("stages/02-dapo")
    return read_json(stage / "result.json") or {}, metric_history(stage / "journal.jsonl")["validation/accuracy"]


def draw(folder: Path, found: dict[str, tuple[dict[str, Any], dict[int, float]]]) -> Path:
    """Both curves; a vertical line where the guard acted, a ring around what was handed over."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (arm, (result, curve)), style in zip(found.items(), ("--", "-"), strict=True):
        (line,) = axes.plot(list(curve), list(curve.values()), style, marker="o", markersize=3, label=arm)
        handed = int(result["checkpoint"].rpartition("-")[2])
        if handed in curve:
            axes.plot(handed, curve[handed], "o", markersize=11, fillstyle="none", color=line.get_color())
        for event in result["events"]:
            axes.axvline(event["step"], color=line.get_color(), linewidth=1, alpha=0.6)
            axes.annotate(event["action"], (event["step"], 0.98), rotation=90, va="top", ha="right", fontsize=9)
    axes.set(xlabel="step", ylabel="accuracy on the validation prompts", ylim=(0, 1))
    axes.legend(title="ringed: handed over")
    path = folder / "collapse.svg"
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    return path


def main() -> None:
    """Train what is not there yet; print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, default=Path("runs/collapse"))
    options = parser.parse_args()
    train(options.folder, options.lr)
    found = {arm: stage_of(options.folder / arm) for arm in ARMS}
    table = Table(title=f"DAPO on the quickstart with a learning rate of {options.lr:g}")
    for column in (
        "",
        "steps",
        "before",
        "best on validation",
        "worst after it",
        "handed over",
        "held-out after",
        "why",
    ):
        table.add_column(column)
    for arm, (result, curve) in found.items():
        best = max(curve, key=lambda step: curve[step])
        worst = min(value for step, value in curve.items() if step >= best)
        why = "; ".join(event["reason"] for event in result["events"])
        handed = result["checkpoint"].rpartition("-")[2].lstrip("0") or "0"
        before, after = (f"{result[f'accuracy_{when}']:.3f}" for when in ("before", "after"))
        table.add_row(
            arm, str(result["steps"]), before, f"{curve[best]:.3f} at {best}", f"{worst:.3f}", handed, after, why
        )
    Console(width=160).print(table)
    print(f"plot: {draw(options.folder, found)}")


if __name__ == "__main__":
    main()
