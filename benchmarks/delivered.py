"""What of a run's journals has reached MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from gradus.pipeline.common.process import child_environment
from gradus.pipeline.tracking.journal import journals, metric_history
from gradus.pipeline.tracking.position import Position


def tracking_faults(run: Path, stages: int) -> list[str]:
    """Where MLflow does not have what the journals of a run say, once."""
    os.environ.update(child_environment())
    import mlflow

    found, client = journals(run), mlflow.MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    wrong = [] if len(found) == 1 + stages else [f"{run.name}: journals of {[label for label, _ in found]}"]
    for label, journal in found:
        where, position = f"{run.name} {label}:", Position.read(journal)
        tracked = client.get_run(position.run_id)
        if tracked.info.status != "FINISHED":
            wrong.append(f"{where} MLflow says {tracked.info.status}")
        same = client.search_runs([position.experiment_id], f"tags.`gradus.key` = '{position.key}'")
        if len(same) != 1:
            wrong.append(f"{where} {len(same)} MLflow runs")
        for metric, wanted in metric_history(journal).items():
            points = client.get_metric_history(position.run_id, metric)
            if sorted((p.step, p.value) for p in points) != sorted(wanted.items()):
                wrong.append(f"{where} MLflow's {metric} is not the journal's")
    return wrong
