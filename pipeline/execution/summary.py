"""The summary of a run, written when every stage is done."""

from __future__ import annotations

import os
from typing import Any

from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.runs.description import description
from gradus.pipeline.runs.run_folder import SUMMARY_FILE, RunFolder
from gradus.pipeline.runs.task_accuracies import matrix, pooled
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import read_run_ids

STAGE_KEYS = [
    "name",
    "variant",
    "steps",
    "accuracy_before",
    "accuracy_after",
    "interval",
    "rollouts",
    "tokens",
    "seconds",
    "checkpoint",
    "mlflow_run_id",
    "events",
    "algorithm",
]
"""The parts of a stage's success record that the summary has, in its order."""


def finish(run: RunFolder) -> dict[str, Any]:
    """Write and return the run's summary; every stage must be done."""
    start, results = run.start(), [run.result(i) for i in range(len(run.config.stages))]
    assert start is not None and all(results), "the summary is written when every stage is done"
    ids = read_run_ids(run.path)
    stages: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        tracked = ids.get(run.stage_dir(index).name)
        entry: dict[str, Any] = {"mlflow_run_id": tracked, "events": [], **(result or {})}
        entry["checkpoint"] = os.path.relpath(entry["checkpoint"], run.path)  # the runs folder may move
        origin = {key: value for key, value in run.outline[index].items() if key == "from"}
        stages.append({key: entry[key] for key in STAGE_KEYS} | origin)
    summary = {
        "name": run.name,
        "seed": run.config.seed,
        "stages": stages,
        "accuracy_start": start["accuracy"],
        "accuracy_end": stages[-1]["accuracy_after"],
        "seconds": round(start["seconds"] + sum(stage["seconds"] for stage in stages), 3),
    }
    if rows := matrix(run):
        summary |= {"tasks": rows, "accuracy_end": pooled(rows[-1]["tasks"])["accuracy"]}
    if run.summary() is None:
        with Journal(run.path / "journal.jsonl") as journal:
            again = sum(len(run.attempts(index)) for index in range(len(stages)))
            accuracies = {"accuracy/start": summary["accuracy_start"], "accuracy/end": summary["accuracy_end"]}
            measured = {name: share for name, share in accuracies.items() if share is not None}
            journal.metrics(again, measured | {"time/total": summary["seconds"]})
            journal.tags({"mlflow.note.content": description(run, summary)})
            journal.end("FINISHED")
    write_sealed(run.path / SUMMARY_FILE, summary)
    return run.summary() or summary
