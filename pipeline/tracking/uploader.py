"""Delivers journals to MLflow: in the background while a run trains, or once in the foreground.

This is the only module of a launch that imports MLflow, and it does so only when there is something to deliver.

    python -m gradus.pipeline.tracking.uploader RUN_DIR --follow --parent-pid PID

A child process started this way makes a pass every two seconds. It ends, after one last pass, when it reads ``finish``
or the end of its standard input, or when its parent is dead; MLflow runs without an end are then marked KILLED.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import redacted
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sync_folder
from gradus.pipeline.common.locks import file_lock, holder
from gradus.pipeline.common.process import MLFLOW_ENVIRONMENT
from gradus.pipeline.tracking.client import ParentProcess
from gradus.pipeline.tracking.curves.delivery import deliver_curves
from gradus.pipeline.tracking.curves.line import waiting
from gradus.pipeline.tracking.delivery import RunDelivery
from gradus.pipeline.tracking.failures import RunMissing, Undeliverable, Unreachable, one_line
from gradus.pipeline.tracking.journal import journals
from gradus.pipeline.tracking.mlflow_run import OWN_EXPERIMENT, Store, follow_move
from gradus.pipeline.tracking.position import (
    Position,
    Report,
    count_events,
    count_undelivered,
    read_run_ids,
    remove_leftovers,
    tracking_options,
    upload_lock,
)

PASS_INTERVAL_SECONDS = 2.0
"""Pause between passes; after failures it doubles, up to MAX_PAUSE_SECONDS."""
MAX_PAUSE_SECONDS = 30.0
PASS_TIMEOUT_SECONDS = 5.0
"""A pass ends after this time, so that a journal with much to send does not delay the others."""
LAST_PASS_TIMEOUT_SECONDS = 60.0
"""How long the last pass may take after the trainer died."""


class Uploader:
    """Delivers the journals of one run folder. The caller must hold the folder's ``upload_lock``."""

    def __init__(self, run_dir: str | Path, tracking_uri: str, experiment: str):
        self.run_dir, self.uri, self.experiment = Path(run_dir).absolute(), tracking_uri, experiment
        self._store: Store | None = None
        """None until there is something to deliver."""
        self._runs: dict[str, RunDelivery] = {}

    def sync(self, deadline: float | None = None) -> Report:
        """One pass over all journals, the pipeline's first and its curves last, up to the deadline (monotonic seconds).
        Never raises."""
        report = Report(self.run_dir.name, str(self.run_dir.parent), redacted(self.uri))
        try:
            for label, path in journals(self.run_dir):
                try:
                    self._deliver(label, path, report, deadline)
                except Undeliverable as error:
                    report.error = one_line(error)
            self._deliver_curves(self.run_dir / "journal.jsonl", report, deadline)
        except Exception as error:  # any failure of tracking is reported, and the next pass tries again
            report.error = redacted(one_line(error))
            if not isinstance(error, Unreachable):
                logging.getLogger(__name__).debug("delivery stopped", exc_info=True)
        with contextlib.suppress(OSError):
            report.undelivered = count_undelivered(self.run_dir)
        report.run_ids = read_run_ids(self.run_dir)
        return report

    def end_runs(self, status: str) -> None:
        """Set the final status of MLflow runs that are still RUNNING because their trainer died."""
        for label, path in journals(self.run_dir):
            with contextlib.suppress(Exception):  # the status of a dead run is not worth an error
                if Position.read(path).status == "RUNNING":
                    delivery = RunDelivery(self._connected(), self.run_dir, label, path)
                    delivery.refresh()
                    delivery.terminate(status)

    def _deliver(self, label: str, path: Path, report: Report, deadline: float | None) -> None:
        if self._store is None:
            position = Position.read(path)
            if position.uri == redacted(self.uri) and position.offset == path.stat().st_size:
                return  # nothing new: no reason to load MLflow
        if label not in self._runs:
            self._runs[label] = RunDelivery(self._connected(), self.run_dir, label, path)
        delivery = self._runs[label]
        if delivery.refresh():
            delivery.open(Position.read(self.run_dir / "journal.jsonl").run_id if label else "")
            delivery.deliver(report, deadline)
        if delivery.run.set_aside and not count_events(path, Position.read(path).offset):
            delivery.terminate("KILLED")  # a new attempt has replaced it; no process will report its end

    def _deliver_curves(self, path: Path, report: Report, deadline: float | None) -> None:
        """The curves that the pipeline's run has from its stages' journals."""
        if not path.exists() or (self._store is None and not waiting(self.run_dir, Position.read(path).run_id)):
            return
        if "" not in self._runs:
            self._runs[""] = RunDelivery(self._connected(), self.run_dir, "", path)
        try:
            deliver_curves(self._runs[""], report, deadline)
        except RunMissing:
            del self._runs[""]  # the next pass looks for the run again, and creates it
            raise

    def _connected(self) -> Store:
        """The store, opened once: MLflow is imported, an SQLite file is created under a lock, and the experiment is
        found or created."""
        if self._store is not None:
            return self._store
        first = "mlflow" not in sys.modules
        mlflow = _import_mlflow()
        with _store_lock(self.uri):
            if self.uri.startswith("sqlite:///"):
                make_database(Path(self.uri.removeprefix("sqlite:///")))
                follow_move(Path(self.uri.removeprefix("sqlite:///")))
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                found = client.get_experiment(self._create_experiment(client))
        if found.lifecycle_stage == "deleted":
            raise Unreachable(f"experiment {self.experiment!r} was deleted; restore it or set tracking.experiment")
        if first:
            gc.freeze()  # a fifth of a long delivery went into visiting MLflow's million objects again and again
        self._store = Store(mlflow, client, self.uri, found.experiment_id)
        return self._store

    def _create_experiment(self, client: Any) -> str:
        location = None  # a server chooses it
        if self.uri.startswith("sqlite:///"):
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        elif not self.uri.startswith(("http", "databricks")):
            # MLflow's default depends on the current folder.
            location = (self.run_dir.parent / "mlartifacts").as_uri()
        try:
            return client.create_experiment(self.experiment, artifact_location=location, tags=OWN_EXPERIMENT)
        except Exception:
            found = client.get_experiment_by_name(self.experiment)  # another uploader was faster
            if found is None:
                raise
            return found.experiment_id


def _import_mlflow() -> Any:
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


def make_database(path: Path) -> None:
    """Make MLflow's tables in an SQLite file, unless there is one; the caller must hold the lock of the store.

    MLflow's migrations cannot be repeated once one was interrupted, so they work on a temporary file, which gets its
    name when it is complete and durable.
    """
    _import_mlflow()
    from mlflow.store.db import utils

    making = path.with_name(f".{path.name}.making")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{making.name}*"):  # of a process that was killed, with SQLite's own files
        left.unlink()
    if path.exists() and path.stat().st_size:
        return
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{making}")
    try:
        utils._initialize_tables(engine)
        engine.dispose()
        with making.open("rb") as file:
            os.fsync(file.fileno())
        making.replace(path)
        sync_folder(path.parent)
    finally:
        engine.dispose()
        making.unlink(missing_ok=True)


@contextlib.contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    """Two processes that create an SQLite store at the same time would both fail, so they take turns."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    with file_lock(path.with_name(path.name + ".lock")):
        yield


def sync_run(run_dir: str | Path) -> Report:
    """Deliver one run folder now, unless another uploader is working on it. Never raises."""
    run_dir = Path(run_dir).absolute()
    try:
        uri, experiment = tracking_options(run_dir)
        with file_lock(upload_lock(run_dir), wait=False) as free:
            if not free:
                left = count_undelivered(run_dir)
                return Report(run_dir.name, str(run_dir.parent), redacted(uri), undelivered=left, busy=True)
            remove_leftovers(run_dir)
            uploader = Uploader(run_dir, uri, experiment)
            report = uploader.sync()
            if report.error is None and holder(run_dir) is None:
                uploader.end_runs("KILLED")
            return report
    except (OSError, UserError) as error:
        return Report(run_dir.name, str(run_dir.parent), error=one_line(error), undelivered=count_undelivered(run_dir))


def follow(run_dir: Path, parent: ParentProcess) -> Report:
    """Make passes until the parent ends, and then a last one."""
    uri, experiment = tracking_options(run_dir)
    uploader = Uploader(run_dir, uri, experiment)
    total = Report(run_dir.name, str(run_dir.parent), redacted(uri))
    while True:
        with file_lock(upload_lock(run_dir), wait=False) as free:
            if free:
                remove_leftovers(run_dir)
                return _passes(uploader, parent, total)
        if parent.ends:
            total.busy, total.undelivered = True, count_undelivered(run_dir)
            return total
        parent.heard.wait(PASS_INTERVAL_SECONDS)


def _passes(uploader: Uploader, parent: ParentProcess, total: Report) -> Report:
    pause = PASS_INTERVAL_SECONDS
    while True:
        last = parent.ends
        report = uploader.sync(time.monotonic() + (LAST_PASS_TIMEOUT_SECONDS if last else PASS_TIMEOUT_SECONDS))
        total.delivered += report.delivered
        total.rejected += report.rejected
        total.undelivered, total.error, total.run_ids = report.undelivered, report.error, report.run_ids
        if last:
            if _is_over(uploader.run_dir, parent, report):
                uploader.end_runs("KILLED")
            return total
        pause = PASS_INTERVAL_SECONDS if report.error is None else min(MAX_PAUSE_SECONDS, 2 * pause)
        waited = time.monotonic() + pause
        while time.monotonic() < waited and not parent.heard.wait(min(PASS_INTERVAL_SECONDS, pause)) and parent.alive:
            pass


def _is_over(run_dir: Path, parent: ParentProcess, report: Report) -> bool:
    """Whether no process will report the end of MLflow runs that are still RUNNING.

    If another launch is already working on the run, it will. A parent that is alive has reported everything.
    """
    if parent.asked and report.undelivered:
        return False
    now = holder(run_dir)
    return now is None or now.get("pid") == parent.pid


def main(arguments: list[str] | None = None) -> int:
    """The child process's entry."""
    parser = argparse.ArgumentParser(prog="python -m gradus.pipeline.tracking.uploader")
    parser.add_argument("run_dir", type=Path, metavar="PATH", help="run folder, or database with --make-database")
    parser.add_argument("--make-database", action="store_true", help="make MLflow's tables, if there is no such file")
    parser.add_argument("--follow", action="store_true", help="go on until the parent process ends")
    parser.add_argument("--parent-pid", type=int, default=os.getppid())
    options = parser.parse_args(arguments)
    if options.make_database:
        make_database(options.run_dir.absolute())
        return 0
    output, sys.stdout = sys.stdout, sys.stderr  # the report is the only thing on standard output
    if options.follow:
        os.nice(5)
        report = follow(options.run_dir.absolute(), ParentProcess(options.parent_pid))
    else:
        report = sync_run(options.run_dir)
    with contextlib.suppress(OSError):  # there may be no reader any more
        print(json.dumps(report.as_dict()), file=output, flush=True)
    return 0 if report.error is None else 1


if __name__ == "__main__":
    sys.exit(main())
