"""The accuracy on every task after every stage: what a run's records say of it. Reads small files only; no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gradus.pipeline.common.shown import shown_share
from gradus.pipeline.runs.run_records import RunRecords
from gradus.pipeline.statistics.intervals import share_bounds

START = "start"
"""The name of the policy before any stage."""
SURE = 0.05
"""The probability, over all tasks of a stage, of marking one that did not fall."""


def matrix(run: RunRecords) -> list[dict[str, Any]]:
    """A row for the start and for each stage that is done: ``{"after": name, "trained": [tasks], "tasks": records}``.

    A record has accuracy, interval and prompts, after a stage also ``fell``, the p-value of "no worse than before it".
    Empty where the pipeline has one task.
    """
    made = [(START, run.start() or {})]
    made += [(stage["name"], run.result(index) or {}) for index, stage in enumerate(run.outline)]
    return [
        {"after": name, "trained": record.get("trained_on", []), "tasks": record["tasks"]}
        for name, record in made
        if "tasks" in record
    ]


def fell(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """The tasks whose accuracy fell significantly, all tests of a stage taken together (Bonferroni)."""
    return [name for name, each in tasks.items() if (p := each.get("fell")) is not None and p < SURE / len(tasks)]


def pooled(tasks: dict[str, dict[str, Any]], names: Collection[str] | None = None) -> dict[str, Any]:
    """Accuracy and interval on the prompts of some tasks together, or of all; None where one of them has none."""
    records = [record for name, record in tasks.items() if names is None or name in names]
    if any(record["accuracy"] is None for record in records):
        return {"accuracy": None, "interval": None}
    prompts = sum(record["prompts"] for record in records)
    correct = sum(round(record["accuracy"] * record["prompts"]) for record in records)
    return {"accuracy": correct / prompts, "interval": list(share_bounds(correct, prompts))}


def accuracy_curves(accuracy: float | None, several: dict[str, Any]) -> dict[str, float]:
    """The points of a pipeline's curves: ``accuracy``; of several tasks all that were measured together, and each as
    ``accuracy/TASK``."""
    curves = {"accuracy": accuracy}
    if tasks := several.get("tasks"):
        curves = {"accuracy": pooled(tasks)["accuracy"]} | {f"accuracy/{n}": r["accuracy"] for n, r in tasks.items()}
    return {name: value for name, value in curves.items() if value is not None}


def shown_accuracy(record: Mapping[str, Any], name: str, trained: Collection[str] = ()) -> str:
    """A task's accuracy by the record of a stage, for a table: with ``*`` where the stage trained on the task, and
    ``fell`` where it fell significantly; empty where it was not measured."""
    if (known := record.get("tasks", {}).get(name)) is None:
        return ""
    words = [shown_share(known["accuracy"])]
    words += ["*"] if name in trained else []
    words += ["fell"] if name in fell(record["tasks"]) else []
    return " ".join(words)
