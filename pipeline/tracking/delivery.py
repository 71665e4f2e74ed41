"""Delivers one journal to one MLflow run. Works on the client it is given; MLflow itself is imported in tracking.py.

Exactly once, by two rules. The byte offset of what MLflow has confirmed is saved after every batch, so at most one
batch is ever sent twice, and MLflow ignores a repeated metric whose time, step and value are the same. A stage that
resumes from a checkpoint repeats some steps with new times: those metrics are not sent again.
"""

from __future__ import annotations

import getpass
import json
import re
import time
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import redacted
from gradus.pipeline.tracking.events import EventWriter, Metric, refused, status_of
from gradus.pipeline.tracking.journal import Event, iter_events
from gradus.pipeline.tracking.position import Position, Report

ATTEMPT = re.compile(r"\.attempt-\d+$")
"""How the name of a stage's folder ends that was set aside."""
MAX_METRICS = 1000
"""Most metrics that one MLflow request may carry."""


class Unreachable(Exception):
    """MLflow cannot take anything now; the pass ends and is repeated later."""


class Undeliverable(Exception):
    """MLflow cannot take this run's journal; the other journals go on."""


def one_line(error: BaseException) -> str:
    """The first line of an error, short enough for a report; of a broken connection, only what broke it."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    if isinstance(root, OSError) and str(root).strip():
        error = root
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


class RunDelivery:
    """One journal and the MLflow run it becomes."""

    def __init__(
        self, mlflow: Any, client: Any, uri: str, experiment_id: str, run_dir: Path, label: str, journal: Path
    ):
        self.mlflow, self.client, self.uri, self.experiment_id = mlflow, client, uri, experiment_id
        self.store = redacted(uri)  # what mlflow.json may hold: no password
        self.run_dir, self.label, self.journal = run_dir, label, journal
        self.position = Position()
        self._opened = ("", 0)
        """Run id that was found in the store, and the file that it was found for."""
        self._file = 0

    def refresh(self) -> bool:
        """Look at the files anew: whether the journal holds whole lines that this store has not confirmed.

        The position is read at every pass, because a stage's folder may have been set aside and begun again.
        """
        status = self.journal.stat()
        self.position, self._file = Position.read(self.journal), status.st_ino
        if status.st_size < self.position.offset:
            return True
        start = self.position.offset if self.position.uri == self.store else 0
        return next(iter_events(self.journal, start), None) is not None

    def open(self, parent_id: str) -> None:
        """Find the MLflow run of this journal, or create it, and save its id before anything is sent."""
        if self.position.run_id and self._opened == (self.position.run_id, self._file):
            return
        first = next((event for event, _ in iter_events(self.journal) if event), None)
        if first is None:
            return  # only damaged lines so far: there is nothing to send
        if self.position.uri != self.store or not self._is_of(first):
            self.position = Position(uri=self.store)
        if self.position.run_id and not self._exists():
            self.position = Position(uri=self.store)  # the store was replaced: deliver from the start
        if not self.position.run_id:
            self.position.key = self._key(first)
            self.position.run_id = self._find() or self._create(first, parent_id)
            self.position.experiment_id = self.experiment_id
            self._save()
        if self._was_cut():
            self.position.offset, self.position.floor = 0, dict(self.position.seen)
        self._opened = self.position.run_id, self._file

    def deliver(self, report: Report, deadline: float | None = None) -> None:
        """Send everything from the confirmed offset on, in order, until the end or the deadline (monotonic seconds)."""
        metrics: list[Metric] = []
        records, reached = 0, self.position.offset
        for event, behind in iter_events(self.journal, self.position.offset):
            new = self._metrics_of(event) if event and event["kind"] == "metrics" else []
            if event and (event["kind"] != "metrics" or len(metrics) + len(new) > MAX_METRICS):
                self._flush(metrics, reached, records, report)
                metrics, records = [], 0
            metrics += new
            if event and event["kind"] != "metrics":
                self._attempt(event, report)
                self._flush([], behind, 1, report)
            else:
                records += event is not None
            reached = behind
            if deadline is not None and time.monotonic() > deadline:
                break
        self._flush(metrics, reached, records, report)

    def terminate(self, status: str) -> None:
        """Give an MLflow run that is still RUNNING its end."""
        if self.position.run_id and self.position.status == "RUNNING" and self.position.uri == self.store:
            self.client.set_terminated(self.position.run_id, status)
            self.position.status = status
            self._save()

    def _save(self) -> None:
        if self.journal.stat().st_ino != self._file:
            raise Unreachable("the folder was set aside meanwhile; both are delivered at the next pass")
        self.position.write(self.journal)

    def _exists(self) -> bool:
        try:
            run = self.client.get_run(self.position.run_id)
        except Exception as error:
            if status_of(error) == 404:
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            raise Undeliverable(f"the MLflow run {self.position.run_id} was deleted; restore it there to go on")
        return True

    def _key(self, first: Event) -> str:
        """The journal's first moment tells one attempt at a stage from the next, wherever its folder is now."""
        stage = ATTEMPT.sub("", self.label) or "pipeline"
        parts = (self.run_dir.name, stage, first["time"])
        return re.sub(r"[^\w.:+-]", "_", "__".join(str(part) for part in parts))

    def _is_of(self, first: Event) -> bool:
        """Whether the position is this journal's, and not one that a folder had which was set aside meanwhile."""
        return not self.position.key or self.position.key.rpartition("__")[2] == self._key(first).rpartition("__")[2]

    @property
    def set_aside(self) -> bool:
        """Whether this is an earlier attempt at a stage, to which nothing will be added."""
        return ATTEMPT.search(self.label) is not None

    def _find(self) -> str | None:
        """A run that an uploader created and did not live to write down."""
        same = f"tags.`gradus.key` = '{self.position.key}'"
        runs = self.client.search_runs([self.experiment_id], same, max_results=1)
        return runs[0].info.run_id if runs else None

    def _create(self, first: Event, parent_id: str) -> str:
        name = first.get("name") or self._title()
        tags = {
            "gradus.key": self.position.key,
            "mlflow.user": _user(),
            "mlflow.source.name": "gradus",
            "mlflow.source.type": "LOCAL",
            **({"mlflow.parentRunId": parent_id} if parent_id else {}),
        }
        run = self.client.create_run(self.experiment_id, start_time=int(first["time"]), tags=tags, run_name=str(name))
        return run.info.run_id

    def _title(self) -> str:
        """What the run is called: its folder's name, "01-warm-up" read as "1 warm-up"."""
        number, _, label = self.label.partition("-")
        return f"{int(number)} {label}" if number.isdigit() else self.label or self.run_dir.name

    def _was_cut(self) -> bool:
        """Whether the journal is not the one that was read so far: shorter, or without a line end at the offset."""
        offset = self.position.offset
        if offset == 0:
            return False
        with open(self.journal, "rb") as file:
            file.seek(offset - 1)
            return file.read(1) != b"\n"

    def _metrics_of(self, event: Event) -> list[Metric]:
        step, at = int(event.get("step", 0)), int(event.get("time", 0))
        values = event.get("values")
        if not isinstance(values, dict):
            return []
        floor = self.position.floor
        return [(name, value, at, step) for name, value in values.items() if step > floor.get(name, -1)]

    def _flush(self, metrics: list[Metric], offset: int, records: int, report: Report) -> None:
        """Send metrics and, once MLflow has them, save that everything up to ``offset`` is delivered."""
        for start in range(0, len(metrics), MAX_METRICS):
            self._send(metrics[start : start + MAX_METRICS], report)
        if offset == self.position.offset:
            return
        for name, _, _, step in metrics:
            self.position.seen[name] = max(step, self.position.seen.get(name, step))
        self.position.offset = offset
        self._save()
        report.delivered += records

    def _send(self, metrics: list[Metric], report: Report) -> None:
        """One request; one that is refused is halved until only the offending values are left out."""
        try:
            self.client.log_batch(self.position.run_id, metrics=[self.mlflow.entities.Metric(*m) for m in metrics])
        except Exception as error:
            if len(metrics) > 1 and refused(error):
                self._probe()
                self._send(metrics[: len(metrics) // 2], report)
                self._send(metrics[len(metrics) // 2 :], report)
            else:
                self._reject(error, {"kind": "metrics", "values": metrics}, report)

    def _attempt(self, event: Event, report: Report) -> None:
        try:
            EventWriter(self.mlflow, self.client, self.uri, self.position, self._title()).write(event)
        except Exception as error:
            self._reject(error, event, report)

    def _reject(self, error: Exception, event: Event, report: Report) -> None:
        """Put aside what MLflow refuses. A failure that is not the event's ends the pass instead."""
        if not refused(error):
            raise Unreachable(one_line(error)) from error
        self._probe()
        line = {"journal": str(self.journal.relative_to(self.run_dir)), "reason": one_line(error), "event": event}
        with open(self.run_dir / "mlflow-rejected.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        report.rejected += 1

    def _probe(self) -> None:
        """Before blaming an event: the run must be there and readable."""
        try:
            exists = self._exists()
        except Undeliverable:
            raise
        except Exception as error:
            raise Unreachable(one_line(error)) from error
        if not exists:
            self._opened = "", 0
            raise Unreachable("the MLflow run is gone; it is created again at the next pass")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
