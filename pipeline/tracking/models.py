"""Records a checkpoint in MLflow as an external model with its scores; MLflow gets its path, not a copy."""

from __future__ import annotations

import re
from typing import Any

from gradus.pipeline.tracking.failures import refused
from gradus.pipeline.tracking.journal import JournalEvent
from gradus.pipeline.tracking.mlflow_run import Store
from gradus.pipeline.tracking.position import Position


def write_model(store: Store, position: Position, event: JournalEvent) -> None:
    """Record the checkpoint as a tag, and as an external model where the server supports that."""
    store.client.set_tag(position.run_id, "checkpoint", event["path"])
    try:
        model_id = _registered(store, position, event)
        _log_scores(store, position.run_id, model_id, event)
    except Exception as error:
        if not refused(error):
            raise


def _registered(store: Store, position: Position, event: JournalEvent) -> str:
    """The id of the event's external model, created where it is missing, as an output of the run."""
    run_id = position.run_id
    name = re.sub(r"[^\w -]", "-", event["name"])
    same = f"name = '{name}' AND source_run_id = '{run_id}'"
    found = store.client.search_logged_models([position.experiment_id], filter_string=same, max_results=1)
    if found:
        model: Any = found[0]
    else:
        store.mlflow.set_tracking_uri(store.uri)
        tags = {"checkpoint": event["path"], "step": str(event["step"]), "mlflow.source.name": "gradus"}
        model = store.mlflow.create_external_model(
            name=name, source_run_id=run_id, tags=tags, experiment_id=position.experiment_id
        )
    outputs = store.client.get_run(run_id).outputs
    if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        output = store.mlflow.entities.LoggedModelOutput(model.model_id, int(event["step"]))
        store.client.log_outputs(run_id, [output])
    return model.model_id


def _log_scores(store: Store, run_id: str, model_id: str, event: JournalEvent) -> None:
    step, at = int(event["step"]), int(event["time"])
    points = {
        key: _logged_point(store, run_id, key, step) or (value, at) for key, value in event.get("metrics", {}).items()
    }
    scores = [
        store.mlflow.entities.Metric(key, value, at, step, model_id, run_id=run_id)
        for key, (value, at) in points.items()
    ]
    if scores:
        store.client.log_batch(run_id, metrics=scores)


def _logged_point(store: Store, run_id: str, key: str, step: int) -> tuple[float, int] | None:
    """Value and time of the run's point at this step: the model's copy of it must not add a second one."""
    history = store.client.get_metric_history(run_id, key)
    return next(((point.value, point.timestamp) for point in history if point.step == step), None)
