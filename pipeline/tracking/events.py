"""Writes single events of a journal to an MLflow run, each in a way that may be repeated without harm.

Works on the client it is given; MLflow itself is imported in tracking.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gradus.pipeline.tracking.figures import QUANTILES, histogram_figure, quantiles
from gradus.pipeline.tracking.journal import Event, tracked_name
from gradus.pipeline.tracking.position import Position

MAX_LABELS = 100
"""Most tags or parameters that one MLflow request may carry."""
MAX_PARAM, MAX_TAG = 6000, 5000
"""Longest values, in characters."""

Metric = tuple[str, float, int, int]
"""Name, value, time (ms), step."""


def status_of(error: Exception) -> int | None:
    """HTTP status that stands for ``error``, or None where there is none."""
    if hasattr(error, "get_http_status_code"):
        return int(error.get_http_status_code())
    return getattr(getattr(error, "response", None), "status_code", None)


def refused(error: Exception) -> bool:
    """Whether MLflow objects to the content, so that sending it again is useless.

    An error without a status is the client's, about what it was given, unless network or data base raised it.
    """
    status = status_of(error)
    if status is None:
        return not isinstance(error, OSError | MemoryError) and not type(error).__module__.startswith("sqlalchemy")
    return 400 <= status < 500 and status not in (401, 403, 408, 409, 429)


class EventWriter:
    """The events of one run that are not plain metrics."""

    def __init__(self, mlflow: Any, client: Any, uri: str, position: Position, title: str):
        self.mlflow, self.client, self.uri, self.position, self.title = mlflow, client, uri, position, title
        self.run_id = position.run_id

    def write(self, event: Event) -> None:
        """Send one event. Raises what MLflow raises, and ValueError for an event that makes no sense."""
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is None:
            raise ValueError(f"unknown kind of event {event['kind']!r}")
        handler(event)

    def _on_start(self, event: Event) -> None:
        if self.position.status:
            self.position.floor = dict(self.position.seen)
        self.client.update_run(self.run_id, status="RUNNING", name=event["name"])
        self.position.status = "RUNNING"
        self._set_tags(event.get("tags") or {})
        self._set_params(event.get("params") or {})

    def _on_tags(self, event: Event) -> None:
        self._set_tags(event["values"])

    def _set_tags(self, values: dict[str, Any]) -> None:
        tags = [self.mlflow.entities.RunTag(tracked_name(key), _text(value)[:MAX_TAG]) for key, value in values.items()]
        for start in range(0, len(tags), MAX_LABELS):
            self.client.log_batch(self.run_id, tags=tags[start : start + MAX_LABELS])

    def _set_params(self, values: dict[str, Any]) -> None:
        """Parameters are immutable in MLflow: a changed one becomes a tag, an overlong one is kept in a file."""
        data = self.client.get_run(self.run_id).data
        known = data.params
        wanted = {tracked_name(key): _text(value) for key, value in values.items()}
        if any(len(value) > MAX_PARAM for value in wanted.values()):
            self.client.log_dict(self.run_id, values, "params/full.json")
        cut = {key: text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 3] + "..." for key, text in wanted.items()}
        new = [self.mlflow.entities.Param(key, value) for key, value in cut.items() if key not in known]
        for start in range(0, len(new), MAX_LABELS):
            self.client.log_batch(self.run_id, params=new[start : start + MAX_LABELS])
        told = {key: value for key, value in cut.items() if f"param_changed.{key}" in data.tags}  # and changed back
        changed = {key: value for key, value in cut.items() if known.get(key, value) != value}
        self._set_tags({f"param_changed.{key}": value for key, value in {**told, **changed}.items()})

    def _on_histogram(self, event: Event) -> None:
        name, step, at = event["name"], int(event["step"]), int(event["time"])
        marks = dict(zip(QUANTILES, quantiles(event["values"]), strict=True))
        new = [(f"{name}/{mark}", value, at, step) for mark, value in marks.items()]
        new = [metric for metric in new if step > self.position.floor.get(metric[0], -1)]
        self.client.log_batch(self.run_id, metrics=[self.mlflow.entities.Metric(*metric) for metric in new])
        for metric in new:
            self.position.seen[metric[0]] = step
        figure = histogram_figure(event["values"], name, f"{self.title}, step {step}")
        self.client.log_figure(self.run_id, figure, f"{name}/step-{step:06d}.png")

    def _on_table(self, event: Event) -> None:
        """A file per event, replaced when sent again (MLflow's own log_table would append to it)."""
        columns = list(dict.fromkeys(key for row in event["rows"] for key in row))
        data = [[row.get(column) for column in columns] for row in event["rows"]]
        file = f"{event['name']}/step-{int(event['step']):06d}.json"
        self.client.log_dict(self.run_id, {"columns": columns, "data": data}, file)
        tags = self.client.get_run(self.run_id).data.tags
        known = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        listed = [entry for entry in known if entry.get("path") != file] + [{"path": file, "type": "table"}]
        while len(json.dumps(listed)) > MAX_TAG:
            listed.pop(0)
        self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(listed))

    def _on_dataset(self, event: Event) -> None:
        entities = self.mlflow.entities
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
        self.client.log_inputs(self.run_id, [entities.DatasetInput(dataset, [context])])

    def _on_model(self, event: Event) -> None:
        """The checkpoint as an external model, where the server knows such a thing; as a tag in any case."""
        self.client.set_tag(self.run_id, "checkpoint", event["path"])
        try:
            self._log_model(event)
        except Exception as error:
            if not refused(error):
                raise

    def _log_model(self, event: Event) -> None:
        name = re.sub(r"[^\w -]", "-", event["name"])
        same = f"name = '{name}' AND source_run_id = '{self.run_id}'"
        found = self.client.search_logged_models([self.position.experiment_id], filter_string=same, max_results=1)
        if found:
            model = found[0]
        else:
            self.mlflow.set_tracking_uri(self.uri)
            tags = {"checkpoint": event["path"], "step": str(event["step"]), "mlflow.source.name": "gradus"}
            model = self.mlflow.create_external_model(
                name=name, source_run_id=self.run_id, tags=tags, experiment_id=self.position.experiment_id
            )
        outputs = self.client.get_run(self.run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            output = self.mlflow.entities.LoggedModelOutput(model.model_id, int(event["step"]))
            self.client.log_outputs(self.run_id, [output])
        step, at = int(event["step"]), int(event["time"])
        points = {key: self._known(key, step) or (value, at) for key, value in event.get("metrics", {}).items()}
        scores = [
            self.mlflow.entities.Metric(key, value, at, step, model.model_id, run_id=self.run_id)
            for key, (value, at) in points.items()
        ]
        if scores:
            self.client.log_batch(self.run_id, metrics=scores)

    def _known(self, key: str, step: int) -> tuple[float, int] | None:
        """Value and time of the run's point at this step: the model's copy of it must not add a second one."""
        history = self.client.get_metric_history(self.run_id, key)
        return next(((point.value, point.timestamp) for point in history if point.step == step), None)

    def _on_artifact(self, event: Event) -> None:
        if not Path(event["path"]).is_file():
            raise ValueError(f"no such file: {event['path']}")
        self.client.log_artifact(self.run_id, event["path"])

    def _on_end(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], end_time=int(event["time"]))
        self.position.status = event["status"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
