"""What is printed at the end of a run: what was learned, where it is, and what to do next."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console

from gradus.flows.screen.tables import print_stages, print_tasks
from gradus.flows.screen.text import duration, number
from gradus.pipeline.common.shown import gradus_command, shown_path
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.pages.tracked import where_to_look


def print_summary(run: RunFolder, summary: dict[str, Any], runs_dir: Path, console: Console) -> None:
    """Print the stages, the change in accuracy, the checkpoints, and commands to try next."""

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say()
    print_stages(summary["stages"], console)
    print_tasks(summary.get("tasks", ()), console)
    say()
    change = f"{number(summary['accuracy_start']) or 'none'} to {number(summary['accuracy_end']) or 'none'}"
    say(f"What was learned: held-out accuracy went from {change} in {duration(summary['seconds'])}.")
    say("Checkpoints, each a normal Hugging Face folder:")
    for index, stage in enumerate(summary["stages"]):
        owner = (run.result(index) or {}).get("shared")
        say(f"  {stage['name']}: {shown_path(stage['checkpoint'])}" + (f" (shared with {owner})" if owner else ""))
    if curves := where_to_look([run.path], run.name, runs_dir):
        say(f"Curves, in MLflow: {curves}")
    last = shown_path(summary["stages"][-1]["checkpoint"])
    say(f"Try it: {gradus_command('sample', last, _example_question(run))}")


def _example_question(run: RunFolder) -> str:
    """A held-out question of the run's task, short enough for a command line."""
    with contextlib.suppress(Exception):
        import pyarrow.parquet

        file = next(run.data_dir.glob("**/heldout*.parquet"))
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=50, columns=["question"]):
            short = [q for q in batch.to_pydict()["question"] if len(q) < 80 and q.isprintable()]
            if short:
                return short[0]
    return "your question"
