"""The description of a run for tracking: names, tags, parameters and data sets, written to its journals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gradus.pipeline.common.shown import shown_share
from gradus.pipeline.config.graph.picture import in_one_line
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import accuracy_curves, shown_accuracy
from gradus.pipeline.tasks.splits import named
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import Position


def open_parent_journal(run: RunFolder, policy: dict[str, Any]) -> None:
    """Start the run of the whole pipeline in the tracking store, or continue it."""
    config = run.config
    order = in_one_line(config.stages)
    params = flatten(config.model_dump(mode="json", exclude={"stages"}))
    params |= {f"policy.{name}": value for name, value in policy.items()}
    tags = {"gradus.pipeline": config.name, "gradus.stages": order, **lineage_tags(run), **run.record.get("tags", {})}
    if run.origin is not None:
        tags["mlflow.note.content"] = description(run)
    file = run.path / "journal.jsonl"
    begins = not file.exists()
    with Journal(file) as journal:
        journal.start(run.name, tags, params)
        journal_datasets(journal, run)
        journal.artifact(run.path / "config.yaml")
        if begins and run.origin is not None:  # its curves begin where those of its origin do
            for number, accuracy, record in _shared(run):
                journal.metrics(number, accuracy_curves(accuracy, record))


def _shared(run: RunFolder) -> Iterator[tuple[int, float | None, dict[str, Any]]]:
    """Number, accuracy and record of the start of a fork, which is 0, and of each stage that it shares."""
    if start := run.start():
        yield 0, start["accuracy"], start
        results = [run.result(index) for index in range(len(run.outline))]
        shared = ((number, each) for number, each in enumerate(results, 1) if each and "shared" in each)
        yield from ((number, result["accuracy_after"], result) for number, result in shared)


def lineage_tags(run: RunFolder) -> dict[str, str]:
    """Tags with the origin of a fork and its changes, which the tracking pages can show in columns."""
    if (origin := run.origin) is None:
        return {}
    tags = {"gradus.forked_from": origin["run"], "gradus.forked_at": origin["stage"]}
    tags |= {"gradus.parent_checkpoint": origin["checkpoint"]}
    tags |= {"gradus.forked_from_run_id": origin["mlflow_run_id"]} if origin["mlflow_run_id"] else {}
    changes = [change.partition(": ") for change in origin["changes"]]
    return tags | {f"changed.{key}": value for key, _, value in changes}


def stage_lineage_tags(run: RunFolder, index: int) -> dict[str, str]:
    """The tags given to the run, and, in a fork, the tracked run of the same stage in its origin."""
    given = {key: value for key, value in run.record.get("tags", {}).items() if key.startswith("gradus.")}
    if run.origin is None:
        return given
    stage = run.path.parent / run.origin["run"] / "stages" / run.stage_dir(index).name
    run_id = Position.read(stage / "journal.jsonl").run_id
    return given | ({"gradus.forked_from_run_id": run_id} if run_id else {})


def journal_datasets(journal: Journal, run: RunFolder) -> None:
    """Record the splits of the data set, with their content hashes."""
    record = run.data()
    for name, task in run.config.named_tasks.items():
        source = str(getattr(task, "dataset", None) or getattr(task, "path", ""))
        for split, context in (("train", "training"), ("heldout", "evaluation")):
            key = named(name, split)
            called = f"{name or source}-{split}"
            journal.dataset(called, source, record["hashes"][key][:16], record["sizes"][key], context)


def description(run: RunFolder, summary: dict[str, Any] | None = None) -> str:
    """The Markdown text at the top of the run's page in MLflow: the origin of a fork, and the results once known."""
    return "\n\n".join(filter(None, (_fork_text(run), _stages_table(summary) if summary else "")))


def _fork_text(run: RunFolder) -> str:
    """The origin of a fork and its changes; empty for other runs."""
    if (origin := run.origin) is None:
        return ""
    source, name = Position.read(run.path.parent / origin["run"] / "journal.jsonl"), f"`{origin['run']}`"
    if source.run_id and source.run_id == origin["mlflow_run_id"]:
        name = f"[{origin['run']}](#/experiments/{source.experiment_id}/runs/{source.run_id})"
    changes = [change.partition(": ") for change in origin["changes"]]
    lines = [
        f"**Fork** of {name}, whose checkpoint `{origin['checkpoint']}` the stage `{origin['stage']}` starts from."
    ]
    lines += ["Changed: " + ", ".join(f"`{key}` {value}" for key, _, value in changes) + "."] if changes else []
    return "\n\n".join(lines)


def _stages_table(summary: dict[str, Any]) -> str:
    branched = any("from" in stage for stage in summary["stages"])
    header = ["stage", *(["from"] if branched else []), "steps"]
    header += ["held-out accuracy before", "after (95 % interval)", "seconds"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    events = [
        f"- {stage['name']}, step {event['step']}, {event['action']}: {event['reason']}"
        for stage in summary["stages"]
        for event in stage["events"]
    ]
    for stage in summary["stages"]:
        after = shown_share(stage["accuracy_after"])
        after += " ({:.3f} to {:.3f})".format(*stage["interval"]) if stage["interval"] else ""
        before, seconds = shown_share(stage["accuracy_before"]), f"{stage['seconds']:.0f}"
        origin = [", ".join(stage["from"])] if branched else []
        cells = (stage["name"], *origin, stage["steps"], before, after, seconds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, *([""] if events else []), *events, *_tasks_table(summary.get("tasks", ()))])


def _tasks_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table of the accuracy on each task after each stage."""
    if not rows:
        return []
    names = list(rows[-1]["tasks"])
    lines = ["", f"| held-out accuracy after | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for row in rows:
        cells = [shown_accuracy(row, name, row["trained"]).replace("*", r"\*") for name in names]
        lines.append(f"| {row['after']} | {' | '.join(cells)} |")
    return [*lines, "", r"\* trained there; fell: significantly, all tasks of the stage taken together"]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested options under dotted keys, as tracking lists parameters.

    >>> flatten({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c': '[2, 3]'}
    """
    if isinstance(value, dict) and value:
        return {
            k: v for key, inner in value.items() for k, v in flatten(inner, f"{path}.{key}" if path else key).items()
        }
    return {path: str(value) if isinstance(value, list | dict) else value}
