"""Delivers one journal to one MLflow run, every event exactly once.

Two rules achieve that. The byte offset up to which MLflow has confirmed the journal is saved after every batch, so at
most one batch is ever sent twice, and MLflow ignores a repeated metric whose time, step and value are the same. A stage
that resumes from a checkpoint repeats some steps with new times: those metrics are not sent again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from gradus.pipeline.tracking.events import Target
from gradus.pipeline.tracking.failures import RunMissing, Unreachable
from gradus.pipeline.tracking.journal import JournalEvent, iter_events, located
from gradus.pipeline.tracking.mlflow_run import Metric, MlflowRun, Store
from gradus.pipeline.tracking.position import Position, Report
from gradus.pipeline.tracking.sending import MAX_METRICS, Sender


class RunDelivery:
    """One journal, its MLflow run, and how far the one has reached the other."""

    def __init__(self, store: Store, run_dir: Path, label: str, journal: Path):
        self.store, self.run_dir, self.journal = store, run_dir, journal
        self.run = MlflowRun(store, run_dir, label)
        self.position = Position()
        self._opened = ("", 0)
        """The run id that was found in the store, and the file that it was found for."""
        self._file = 0
        self._written: set[tuple[str, int]] = set()
        """Of the pipeline's journal, whose steps are stages, not always done in order: (metric, step) of every line up
        to now, because one that is written again is not sent again."""

    def refresh(self) -> bool:
        """Read the files again; returns whether the journal has whole lines that this store has not confirmed.

        The position is read at every pass, because a stage's folder may have been set aside and started again.
        """
        status = self.journal.stat()
        self.position, self._file = Position.read(self.journal), status.st_ino
        if status.st_size < self.position.offset:
            return True
        start = self.position.offset if self.position.uri == self.store.name else 0
        return next(iter_events(self.journal, start), None) is not None

    def open(self, parent_id: str) -> None:
        """Find the MLflow run of this journal, or create it, and save its id before anything is sent."""
        if self.position.run_id and self._opened == (self.position.run_id, self._file):
            return
        first = next((event for event, _ in iter_events(self.journal) if event), None)
        if first is None:
            return  # only damaged lines so far: there is nothing to send
        if self.position.uri != self.store.name or not self.run.is_key_of(self.position.key, first):
            self.position = Position(uri=self.store.name)
        if self.position.run_id and not self.store.has_run(self.position.run_id):
            self.position = Position(uri=self.store.name)  # the store was replaced: deliver from the start
        if not self.position.run_id:
            self.position.key = self.run.key(first)
            self.position.run_id = self.run.find_or_create(self.position.key, first, parent_id)
            self.position.experiment_id = self.store.experiment_id
            self._save()
        if self._was_cut():
            self.position.offset, self.position.floor = 0, dict(self.position.seen)
        self._opened = self.position.run_id, self._file

    def deliver(self, report: Report, deadline: float | None = None) -> None:
        """Send everything after the confirmed offset, in order, until the end or the deadline (monotonic seconds)."""
        sender = Sender(Target(self.store, self.position, self.run.title), self.run_dir, self.journal, report)
        try:
            self._deliver(sender, report, deadline)
        except RunMissing:
            self._opened = "", 0
            raise

    def terminate(self, status: str) -> None:
        """Set the final status of an MLflow run that is still RUNNING."""
        if self.position.run_id and self.position.status == "RUNNING" and self.position.uri == self.store.name:
            self.store.client.set_terminated(self.position.run_id, status)
            self.position.status = status
            self._save()

    def _deliver(self, sender: Sender, report: Report, deadline: float | None) -> None:
        metrics: list[Metric] = []
        records, reached = 0, self.position.offset
        self._written = set() if self.run.label else points_before(self.journal, reached)
        for event, behind in iter_events(self.journal, self.position.offset):
            new = self._metrics_of(event) if event and event["kind"] == "metrics" else []
            if event and (event["kind"] != "metrics" or len(metrics) + len(new) > MAX_METRICS):
                sender.send_metrics(metrics)
                self._confirm(metrics, reached, records, report)
                metrics, records = [], 0
            metrics += new
            if event and event["kind"] != "metrics":
                if "path" in event:
                    event = {**event, "path": str(located(self.journal, event["path"]))}
                sender.send_event(event)
                self._confirm([], behind, 1, report)
            else:
                records += event is not None
            reached = behind
            if deadline is not None and time.monotonic() > deadline:
                break
        sender.send_metrics(metrics)
        self._confirm(metrics, reached, records, report)

    def _metrics_of(self, event: JournalEvent) -> list[Metric]:
        step, at = int(event.get("step", 0)), int(event.get("time", 0))
        values = event.get("values")
        if not isinstance(values, dict):
            return []
        if self.run.label:
            floor = self.position.floor
            return [(name, value, at, step) for name, value in values.items() if step > floor.get(name, -1)]
        new = [name for name in values if (name, step) not in self._written]
        self._written |= {(name, step) for name in new}
        return [(name, values[name], at, step) for name in new]

    def _confirm(self, metrics: Sequence[Metric], offset: int, records: int, report: Report) -> None:
        """Save that everything up to ``offset``, these metrics included, has been delivered."""
        if offset == self.position.offset:
            return
        for name, _, _, step in metrics:
            self.position.seen[name] = max(step, self.position.seen.get(name, step))
        self.position.offset = offset
        self._save()
        report.delivered += records

    def _was_cut(self) -> bool:
        """Whether the journal was replaced: it is shorter than the offset, or has no line end there."""
        offset = self.position.offset
        if offset == 0:
            return False
        with open(self.journal, "rb") as file:
            file.seek(offset - 1)
            return file.read(1) != b"\n"

    def _save(self) -> None:
        if self.journal.stat().st_ino != self._file:
            raise Unreachable("the folder was set aside meanwhile; both are delivered at the next pass")
        self.position.write(self.journal)


def points_before(journal: Path, offset: int) -> set[tuple[str, int]]:
    """(metric, step) of all metrics in the first ``offset`` bytes of a journal."""
    events = itertools.takewhile(lambda found: found[1] <= offset, iter_events(journal))
    metrics = (event for event, _ in events if event and event["kind"] == "metrics")
    return {(name, int(event.get("step", 0))) for event in metrics for name in event.get("values") or ()}
