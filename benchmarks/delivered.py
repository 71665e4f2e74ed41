"""What of a run's journals has reached MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from gradus.pipeline.common.process import child_environment
from gradus.pipeline.tracking.journal import journals, metric_history
from gradus.pipeline.tracking.position import Position

CURVES = ("reward/mean", "completion/length", "time/step")
"""Some of what the run of the pipeline has of its stages."""


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
        expected = metric_history(journal)
        if not label:
            expected |= {name: one_after_the_other(name, [path for _, path in found[1:]]) for name in CURVES}
        for metric, wanted in expected.items():
            points = client.get_metric_history(position.run_id, metric)
            if sorted((p.step, p.value) for p in points) != sorted(wanted.items()):
                wrong.append(f"{where} MLflow's {metric} is not the journal's")
    return wrong


def one_after_the_other(metric: str, stages: list[Path]) -> dict[int, float]:
    """A metric over the steps of a pipeline whose stages ran once each."""
    begin, whole = 0, dict[int, float]()
    for journal in stages:
        history = metric_history(journal)
        whole |= {begin + step: value for step, value in history.get(metric, {}).items() if step}
        begin += max(history["time/step"])
    return whole
