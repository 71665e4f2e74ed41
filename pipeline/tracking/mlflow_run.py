"""An opened MLflow store, and the MLflow run in it that belongs to a journal.

MLflow's module and client are given to this module; only ``uploader.py`` imports MLflow.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gradus.pipeline.common.addresses import redacted
from gradus.pipeline.tracking.failures import Undeliverable, status_of
from gradus.pipeline.tracking.journal import JournalEvent

SET_ASIDE = re.compile(r"\.attempt-\d+$")
"""The end of the name of a stage's folder that was set aside."""

OWN_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}
"""The tag of experiments that gradus creates, with which MLflow's UI opens with the runs."""
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("trace_tags", "value"),
)
"""Table and column of every address of artifacts in MLflow's database."""
CHECKPOINT_TAGS = (("tags", "value"), ("logged_model_tags", "tag_value"))
"""Table and column of every tag in MLflow's database, among them the paths of checkpoints."""

Metric = tuple[str, float, int, int]
"""Name, value, time (ms), step."""


@dataclass(frozen=True)
class Store:
    """An MLflow store and one experiment in it."""

    mlflow: Any
    """The module ``mlflow``."""
    client: Any
    """An ``MlflowClient`` of the store."""
    uri: str
    experiment_id: str

    @property
    def name(self) -> str:
        """The store's address without a password, as ``mlflow.json`` may contain it."""
        return redacted(self.uri)

    def has_run(self, run_id: str) -> bool:
        """Whether the run exists. Raises: Undeliverable where it was deleted, and what MLflow raises."""
        try:
            run = self.client.get_run(run_id)
        except Exception as error:
            if status_of(error) == 404:
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            raise Undeliverable(f"the MLflow run {run_id} was deleted; restore it there to go on")
        return True

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Send metrics in one request."""
        self.client.log_batch(run_id, metrics=[self.mlflow.entities.Metric(*metric) for metric in metrics])


def follow_move(database: Path) -> None:
    """Point gradus's own SQLite store at the artifacts beside it, where the folder of both has moved.

    MLflow stores the absolute addresses of artifacts with its experiments, runs and models; tags hold the paths of
    checkpoints, which have moved with them.
    """
    here = (database.parent / "mlartifacts").as_uri()
    marked = "SELECT experiment_id FROM experiment_tags WHERE key = ? AND value = ?"
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        found = connection.execute(
            f"SELECT DISTINCT artifact_location FROM experiments WHERE experiment_id IN ({marked})",
            (*OWN_EXPERIMENT.keys(), *OWN_EXPERIMENT.values()),
        )
        own = [location for (location,) in found if location and re.fullmatch(r"file:.*/mlartifacts", location)]
        for old in own:
            if old != here:
                runs = unquote(urlsplit(old).path).removesuffix("/mlartifacts")
                for table, column in ADDRESSES:
                    _repoint(connection, table, column, old, here)
                for table, column in CHECKPOINT_TAGS:
                    _repoint(connection, table, column, runs, str(database.parent))


def _repoint(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Replace the start of every address or path in a column that is ``old``, or below it."""
    below = f"{column} = ? OR substr({column}, 1, ?) = ?"
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {below}",
        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
    )


class MlflowRun:
    """Finds the MLflow run that belongs to a journal, or creates it."""

    def __init__(self, store: Store, run_dir: Path, label: str):
        self.store, self.run_dir, self.label = store, run_dir, label

    @property
    def title(self) -> str:
        """The run's name, from its folder: "1 warm-up" for "01-warm-up"."""
        number, _, label = self.label.partition("-")
        return f"{int(number)} {label}" if number.isdigit() else self.label or self.run_dir.name

    @property
    def set_aside(self) -> bool:
        """Whether this is an earlier attempt at a stage, to which nothing will be added."""
        return SET_ASIDE.search(self.label) is not None

    def key(self, first: JournalEvent) -> str:
        """Identifies the run. The time of the journal's first event distinguishes the attempts at a stage, wherever
        their folders are now."""
        stage = SET_ASIDE.sub("", self.label) or "pipeline"
        parts = (self.run_dir.name, stage, first["time"])
        return re.sub(r"[^\w.:+-]", "_", "__".join(str(part) for part in parts))

    def is_key_of(self, key: str, first: JournalEvent) -> bool:
        """Whether a saved key belongs to this journal, and not to one in the same folder that was set aside since."""
        return not key or key.rpartition("__")[2] == self.key(first).rpartition("__")[2]

    def find_or_create(self, key: str, first: JournalEvent, parent_id: str) -> str:
        """The id of the run with this key; a new run is a child of ``parent_id``, where that is not empty.

        The run may exist already: an uploader may have created it and died before it saved the id.
        """
        store = self.store
        runs = store.client.search_runs([store.experiment_id], f"tags.`gradus.key` = '{key}'", max_results=1)
        if runs:
            return runs[0].info.run_id
        tags = {
            "gradus.key": key,
            "mlflow.user": _user(),
            "mlflow.source.name": "gradus",
            "mlflow.source.type": "LOCAL",
            **({"mlflow.parentRunId": parent_id} if parent_id else {}),
        }
        name, start = str(first.get("name") or self.title), int(first["time"])
        return store.client.create_run(store.experiment_id, start_time=start, tags=tags, run_name=name).info.run_id


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
