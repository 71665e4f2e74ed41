"""Writes a single event of a journal to an MLflow run, in a way that may be repeated without harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.tracking.figures import QUANTILES, histogram_figure, quantiles
from gradus.pipeline.tracking.journal import JournalEvent, tracked_name
from gradus.pipeline.tracking.mlflow_run import Store
from gradus.pipeline.tracking.models import write_model
from gradus.pipeline.tracking.position import Position
from gradus.pipeline.tracking.traces import table_of, write_traces

MAX_LABELS = 100
"""Most tags or parameters that one MLflow request may carry."""
MAX_PARAM, MAX_TAG = 6000, 5000
"""Longest values, in characters."""

ROLLOUTS = "gradus/rollouts"
"""The name under which a position knows the newest step whose completions were delivered."""


@dataclass(frozen=True)
class Target:
    """The MLflow run that receives the events of a journal."""

    store: Store
    position: Position
    """What the run has received; updated as events are written."""
    title: str
    """The run's name in figures."""

    @property
    def run_id(self) -> str:
        """The id of the MLflow run."""
        return self.position.run_id


def write_event(target: Target, event: JournalEvent) -> None:
    """Send one event of any kind but ``metrics``.

    Raises: what MLflow raises; ValueError and KeyError for an event that is not valid.
    """
    handler = HANDLERS.get(event["kind"])
    if handler is None:
        raise ValueError(f"unknown kind of event {event['kind']!r}")
    handler(target, event)


def _start(target: Target, event: JournalEvent) -> None:
    if target.position.status:
        target.position.floor = dict(target.position.seen)
    target.store.client.update_run(target.run_id, status="RUNNING", name=event["name"])
    target.position.status = "RUNNING"
    _set_tags(target, event.get("tags") or {})
    _set_params(target, event.get("params") or {})


def _tags(target: Target, event: JournalEvent) -> None:
    _set_tags(target, event["values"])


def _set_tags(target: Target, values: dict[str, Any]) -> None:
    tag = target.store.mlflow.entities.RunTag
    tags = [tag(tracked_name(key), _text(value)[:MAX_TAG]) for key, value in values.items()]
    for start in range(0, len(tags), MAX_LABELS):
        target.store.client.log_batch(target.run_id, tags=tags[start : start + MAX_LABELS])


def _set_params(target: Target, values: dict[str, Any]) -> None:
    """Parameters are immutable in MLflow: a changed one becomes a tag, and one that is too long is kept in a file."""
    client = target.store.client
    data = client.get_run(target.run_id).data
    known = data.params
    wanted = {tracked_name(key): _text(value) for key, value in values.items()}
    if any(len(value) > MAX_PARAM for value in wanted.values()):
        client.log_dict(target.run_id, values, "params/full.json")
    cut = {key: text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 3] + "..." for key, text in wanted.items()}
    new = [target.store.mlflow.entities.Param(key, value) for key, value in cut.items() if key not in known]
    for start in range(0, len(new), MAX_LABELS):
        client.log_batch(target.run_id, params=new[start : start + MAX_LABELS])
    # One that was changed before has such a tag already, and may have been changed back.
    tagged = {key: value for key, value in cut.items() if f"param_changed.{key}" in data.tags}
    changed = {key: value for key, value in cut.items() if known.get(key, value) != value}
    _set_tags(target, {f"param_changed.{key}": value for key, value in {**tagged, **changed}.items()})


def _histogram(target: Target, event: JournalEvent) -> None:
    name, step, at = event["name"], int(event["step"]), int(event["time"])
    marks = dict(zip(QUANTILES, quantiles(event["values"]), strict=True))
    new = [(f"{name}/{mark}", value, at, step) for mark, value in marks.items()]
    new = [metric for metric in new if step > target.position.floor.get(metric[0], -1)]
    target.store.log_metrics(target.run_id, new)
    for metric in new:
        target.position.seen[metric[0]] = step
    figure = histogram_figure(event["values"], name, f"{target.title}, step {step}")
    target.store.client.log_figure(target.run_id, figure, f"{name}/step-{step:06d}.png")


def _table(target: Target, event: JournalEvent) -> None:
    """One file per event, replaced when the event is sent again (MLflow's own log_table would append to it)."""
    client = target.store.client
    columns = list(dict.fromkeys(key for row in event["rows"] for key in row))
    data = [[row.get(column) for column in columns] for row in event["rows"]]
    file = f"{event['name']}/step-{int(event['step']):06d}.json"
    client.log_dict(target.run_id, {"columns": columns, "data": data}, file)
    tags = client.get_run(target.run_id).data.tags
    known = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
    listed = [entry for entry in known if entry.get("path") != file] + [{"path": file, "type": "table"}]
    while len(json.dumps(listed)) > MAX_TAG:
        listed.pop(0)
    client.set_tag(target.run_id, "mlflow.loggedArtifacts", json.dumps(listed))


def _rollouts(target: Target, event: JournalEvent) -> None:
    """Once for each step, however often it is trained."""
    step = int(event["step"])
    if step > target.position.floor.get(ROLLOUTS, -1):
        if not write_traces(target.store, target.run_id, event):
            _table(target, table_of(event))
        target.position.seen[ROLLOUTS] = step


def _dataset(target: Target, event: JournalEvent) -> None:
    entities = target.store.mlflow.entities
    columns = [{"name": column, "type": "string", "required": True} for column in event.get("columns", [])]
    dataset = entities.Dataset(
        name=event["name"][:500],
        digest=event["digest"][:36],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({"num_rows": event["rows"]}),
    )
    context = entities.InputTag("mlflow.data.context", event["context"])
    target.store.client.log_inputs(target.run_id, [entities.DatasetInput(dataset, [context])])


def _model(target: Target, event: JournalEvent) -> None:
    write_model(target.store, target.position, event)


def _artifact(target: Target, event: JournalEvent) -> None:
    if not Path(event["path"]).is_file():
        raise ValueError(f"no such file: {event['path']}")
    target.store.client.log_artifact(target.run_id, event["path"])


def _end(target: Target, event: JournalEvent) -> None:
    target.store.client.set_terminated(target.run_id, event["status"], end_time=int(event["time"]))
    target.position.status = event["status"]


HANDLERS: dict[str, Callable[[Target, JournalEvent], None]] = {
    "start": _start,
    "tags": _tags,
    "histogram": _histogram,
    "table": _table,
    "rollouts": _rollouts,
    "dataset": _dataset,
    "model": _model,
    "artifact": _artifact,
    "end": _end,
}
"""Kind of event -> the function that writes it."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
