"""The table of accuracies on each task after each stage."""

from __future__ import annotations

import io

from rich.console import Console

from gradus.flows.screen.tables import print_tasks


def shown(rows: list[dict]) -> str:
    out = io.StringIO()
    print_tasks(rows, Console(file=out, width=80))
    return out.getvalue()


def record(accuracy: float | None, fell: float | None = None) -> dict:
    return {"accuracy": accuracy, "interval": None, "prompts": 10, "fell": fell}


def test_what_was_trained_what_fell_and_what_was_not_measured_can_be_told_apart() -> None:
    text = shown([
        {"after": "start", "trained": [], "tasks": {"sums": record(0.1), "sort": record(None)}},
        {"after": "sft", "trained": ["sums"], "tasks": {"sums": record(0.625, 1.0)}},
        {"after": "dapo", "trained": ["sort"], "tasks": {"sums": record(0.25, 0.001), "sort": record(0.5, 0.03)}},
    ])  # fmt: skip
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    assert lines[0] == "accuracy after sums sort"
    assert lines[1:4] == ["start 0.100 none", "sft 0.625 *", "dapo 0.250 fell 0.500 *"]  # p = 0.03 of two tasks is none
    assert "* trained there" in lines[4] and "significantly" in lines[4]


def test_one_task_needs_no_table() -> None:
    assert shown([]) == ""
