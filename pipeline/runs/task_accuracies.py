"""The accuracy on every task after every stage: what a run's records say of it. Reads small files only; no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

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
