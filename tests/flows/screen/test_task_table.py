"""The table of accuracies on each task after each stage."""

from __future__ import annotations

import io

from rich.console import Console

from gradus.flows.orchestrator.pages import table_row
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


def test_every_row_of_the_page_has_every_task() -> None:
    """Prefect shows the columns of the first row, and a stage may leave tasks unmeasured."""
    first = {"tasks": {"sums": record(0.625, 1.0)}}
    last = {"tasks": {"sums": record(0.25, 0.001), "sort": record(None)}}
    rows = [table_row(name, result, tasks=["sums", "sort"]) for name, result in (("sft", first), ("dapo", last))]
    assert [list(row) for row in rows] == [list(rows[0])] * 2
    shown = [[row[f"accuracy on {name}"] for name in ("sums", "sort")] for row in rows]
    assert shown == [["0.625", ""], ["0.250 fell", "none"]]
    assert "accuracy on" not in str(table_row("sft", {}))
