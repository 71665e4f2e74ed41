"""The accuracy of every task after every stage: measured, stored, and compared with what it was before."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import pooled
from gradus.pipeline.statistics.drops import paired_drop
from gradus.pipeline.training.evaluation import Evaluation


def tasks_record(whole: Evaluation, before: dict[str, bool] | None) -> dict[str, Any]:
    """The part of a success record on each task: accuracy, interval, number of prompts, and ``fell``, the p-value of
    "no worse than before the stage" (McNemar's exact test on the same prompts), None where that is not known. Empty
    where there is one task.
    """
    by_task = whole.by_task()
    if list(by_task) == [""]:
        return {}
    now = whole.by_prompt()
    for name, record in by_task.items():
        both = [key for key in now if key.startswith(f"{name}/") and key in (before or {})]
        pairs = [((before or {})[key], now[key]) for key in both]
        record["fell"] = paired_drop([old for old, _ in pairs], [new for _, new in pairs]) if pairs else None
    return {"tasks": by_task}


def heldout_before(run: RunFolder, index: int) -> dict[str, bool] | None:
    """id of a held-out prompt -> whether the policy that a stage starts from answered it correctly."""
    return run.heldout(index - 1) if index else (run.start() or {}).get("correct")


def accuracy_before(run: RunFolder, index: int, tasks: Collection[str]) -> dict[str, Any]:
    """The held-out accuracy on these tasks of the policy that a stage starts from, with its interval."""
    made = run.result(index - 1) if index else run.start()
    assert made is not None, "a stage starts from what has been measured"
    if "tasks" in made:
        return pooled(made["tasks"], tasks)
    return {"accuracy": made["accuracy_after"] if index else made["accuracy"], "interval": made["interval"]}


def accuracy_curves(accuracy: float | None, several: dict[str, Any]) -> dict[str, float]:
    """The points of a pipeline's curves: ``accuracy``, and ``accuracy/TASK`` where there are several."""
    curves = {"accuracy": accuracy} | {f"accuracy/{n}": r["accuracy"] for n, r in several.get("tasks", {}).items()}
    return {name: value for name, value in curves.items() if value is not None}
