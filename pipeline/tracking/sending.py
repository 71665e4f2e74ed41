"""Sends a journal's events to its MLflow run, and sets aside what MLflow refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradus.pipeline.tracking.events import Target, write_event
from gradus.pipeline.tracking.failures import RunMissing, Undeliverable, Unreachable, one_line, refused
from gradus.pipeline.tracking.journal import JournalEvent
from gradus.pipeline.tracking.mlflow_run import Metric
from gradus.pipeline.tracking.position import Report

MAX_METRICS = 1000
"""Most metrics that one MLflow request may carry."""
REJECTED_FILE = "mlflow-rejected.jsonl"
"""In the run folder: the events that MLflow refused, with the reason."""


@dataclass(frozen=True)
class Sender:
    """Sends events of one journal to one MLflow run. Raises: Unreachable and Undeliverable."""

    target: Target
    run_dir: Path
    journal: Path
    report: Report
    """Counts what was rejected."""

    def send_metrics(self, metrics: Sequence[Metric]) -> None:
        """Send any number of metrics."""
        for start in range(0, len(metrics), MAX_METRICS):
            self._send_batch(metrics[start : start + MAX_METRICS])

    def send_event(self, event: JournalEvent) -> None:
        """Send an event of another kind."""
        try:
            write_event(self.target, event)
        except Exception as error:
            self._reject(error, event)

    def _send_batch(self, metrics: Sequence[Metric]) -> None:
        """One request. A refused batch is halved until only the values at fault are left out."""
        try:
            self.target.store.log_metrics(self.target.run_id, metrics)
        except Exception as error:
            if len(metrics) > 1 and refused(error):
                self._require_run()
                self._send_batch(metrics[: len(metrics) // 2])
                self._send_batch(metrics[len(metrics) // 2 :])
            else:
                self._reject(error, {"kind": "metrics", "values": list(metrics)})

    def _reject(self, error: Exception, event: JournalEvent) -> None:
        """Set aside an event that MLflow refuses. Raises: Unreachable, where the failure is not the event's fault."""
        if not refused(error):
            raise Unreachable(one_line(error)) from error
        self._require_run()
        line = {"journal": str(self.journal.relative_to(self.run_dir)), "reason": one_line(error), "event": event}
        with open(self.run_dir / REJECTED_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.report.rejected += 1

    def _require_run(self) -> None:
        """Before an event is blamed for a failure: the run must exist and be readable."""
        try:
            exists = self.target.store.has_run(self.target.run_id)
        except Undeliverable:
            raise
        except Exception as error:
            raise Unreachable(one_line(error)) from error
        if not exists:
            raise RunMissing("the MLflow run is gone; it is created again at the next pass")
