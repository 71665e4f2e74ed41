"""How far the journals of a run folder have reached MLflow, and what delivery needs to know of the folder.

The uploader keeps its position in ``mlflow.json`` beside each journal. Nothing here imports MLflow.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import portable_uri, resolve_uri
from gradus.pipeline.common.files import temporary_for, write_json
from gradus.pipeline.common.locks import holder
from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.tracking.curves.line import LINE_FILE, pending, waiting
from gradus.pipeline.tracking.journal import iter_events, journals, run_dir_of

POSITION_FILE = "mlflow.json"
"""Beside each journal: how far it has been delivered."""


@dataclass
class Report:
    """How far one run folder's journals have reached MLflow."""

    run: str
    runs: str = ""
    """The folder that the run lies in."""
    uri: str = ""
    delivered: int = 0
    """Journal records that this uploader delivered."""
    rejected: int = 0
    """Records or values that MLflow refused for their content, kept in ``mlflow-rejected.jsonl``."""
    undelivered: int = 0
    """Records still waiting in the journals."""
    error: str | None = None
    """Why delivery stopped, in one line."""
    busy: bool = False
    """Another uploader is delivering this run at the moment."""
    run_ids: dict[str, str] = field(default_factory=dict)
    """MLflow run ids: "" for the pipeline, a stage's folder name for each stage."""

    @property
    def message(self) -> str:
        """One line for the user, empty where all is well."""
        if self.busy:
            return f"{self.run}: another process is delivering it right now"
        if self.undelivered:
            why = f" ({self.error})" if self.error else ""
            return (
                f"{self.run}: {self.undelivered} tracking records have not reached MLflow at {self.uri}{why}; "
                f"they are kept in the run folder and `{gradus_command('sync', runs=Path(self.runs))}` delivers them"
            )
        if self.rejected:
            return f"{self.run}: MLflow refused {self.rejected} tracking records (see mlflow-rejected.jsonl)"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass
class Position:
    """How far one journal has reached MLflow: the content of the ``mlflow.json`` beside it."""

    uri: str = ""
    """The store, without a password. The file holds that of a store in the runs folder relative to it."""
    experiment_id: str = ""
    run_id: str = ""
    key: str = ""
    """Value of the run's ``gradus.key`` tag, which finds a run again whose id was never saved."""
    status: str = ""
    """The last status that the MLflow run was given."""
    offset: int = 0
    """Bytes of the journal that MLflow has confirmed."""
    seen: dict[str, int] = field(default_factory=dict)
    """Metric -> highest step delivered."""
    floor: dict[str, int] = field(default_factory=dict)
    """Metric -> highest step delivered before the last restart; repeated steps up to it are not logged again."""

    @classmethod
    def read(cls, journal: Path) -> Position:
        """The position of ``journal``; a new one where nothing has been delivered."""
        try:
            raw = json.loads((journal.parent / POSITION_FILE).read_text(encoding="utf-8"))
            found = cls(**{name: raw[name] for name in cls.__dataclass_fields__ if name in raw})
            if found.uri.startswith("sqlite:///"):
                found.uri = resolve_uri(found.uri, run_dir_of(journal).parent)
            return found
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, journal: Path) -> None:
        """Replace the position of ``journal`` atomically."""
        fields = asdict(self)
        if self.uri.startswith("sqlite:///"):
            fields["uri"] = portable_uri(self.uri, run_dir_of(journal).parent)
        write_json(journal.parent / POSITION_FILE, fields)


def read_run_ids(run_dir: str | Path) -> dict[str, str]:
    """MLflow run ids known so far: {"": the pipeline's, "01-sft": a stage's, ...}."""
    ids = {label: Position.read(journal).run_id for label, journal in journals(run_dir)}
    return {label: run_id for label, run_id in ids.items() if run_id}


def count_undelivered(run_dir: str | Path) -> int:
    """Number of journal records that MLflow has not confirmed, for each of the runs that they are for."""
    offsets = {path: Position.read(path).offset for _, path in journals(run_dir)}
    for path, offset in pending(Path(run_dir), _pipeline_run(run_dir)) if offsets else ():
        offsets[path] = min(offset, offsets.get(path, offset))
    return sum(count_events(path, offset) for path, offset in offsets.items())


def _pipeline_run(run_dir: str | Path) -> str:
    return Position.read(Path(run_dir) / "journal.jsonl").run_id


def count_events(journal: Path, offset: int) -> int:
    """Number of complete lines of a journal from byte ``offset`` on."""
    return sum(1 for _ in iter_events(journal, offset))


def needs_delivery(run_dir: str | Path) -> bool:
    """Whether MLflow lacks records of a run, or the end of a run whose processes died without reporting it."""
    if count_undelivered(run_dir) or waiting(Path(run_dir), _pipeline_run(run_dir)):
        return True
    running = any(Position.read(path).status == "RUNNING" for _, path in journals(run_dir))
    return running and holder(run_dir) is None


def remove_leftovers(run_dir: str | Path) -> None:
    """Remove the temporary files of an uploader that was killed; the caller must hold the upload lock."""
    for _, path in journals(run_dir):
        for leftover in path.parent.glob(".mlflow*"):
            if temporary_for(leftover.name) in (POSITION_FILE, LINE_FILE):
                leftover.unlink(missing_ok=True)


def tracking_options(run_dir: str | Path) -> tuple[str, str]:
    """(tracking URI, experiment) of a run folder, from its ``config.yaml``.

    Raises:
        UserError: MLflow cannot use the configured URI.
    """
    import yaml

    options: Any = {}
    with contextlib.suppress(OSError, yaml.YAMLError, AttributeError):
        options = yaml.safe_load((Path(run_dir) / "config.yaml").read_text(encoding="utf-8")).get("tracking") or {}
    return resolve_uri(options.get("uri"), Path(run_dir).absolute().parent), str(options.get("experiment") or "gradus")


def upload_lock(run_dir: str | Path) -> Path:
    """The lock file of a run's uploader, of which there is at most one at a time."""
    return Path(run_dir) / "mlflow.lock"
