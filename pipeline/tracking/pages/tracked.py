"""From run folders to their runs in MLflow, and to the page that shows these. Nothing here imports MLflow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradus.pipeline.common.addresses import redacted
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.tracking.access import request_options
from gradus.pipeline.tracking.client import NO_MLFLOW, mlflow_is_installed
from gradus.pipeline.tracking.mlflow_run import SET_ASIDE
from gradus.pipeline.tracking.pages.address import MAX_VIEW, VIEW_TAG, Page, charts_page, list_page
from gradus.pipeline.tracking.position import (
    POSITION_FILE,
    Position,
    Report,
    needs_delivery,
    read_run_ids,
    tracking_options,
)
from gradus.pipeline.tracking.ui import newest_uri

FIRST_DELIVERY_TIMEOUT_SECONDS = 15.0
"""How long to wait for another process that has begun to deliver a run and has no run id yet."""
SAVE_TIMEOUT_SECONDS = 10.0
"""How long the server may take to save a view."""


@dataclass(frozen=True)
class TrackedRun:
    """A run folder's runs in MLflow."""

    name: str
    uri: str
    """The store's address, as MLflow takes it."""
    experiment: str
    run_id: str
    stages: tuple[str, ...]
    """Run ids of the stages, in order."""
    note: str = ""
    """What the user should know of the delivery; empty where MLflow has everything."""


def tracked_run(run_dir: Path) -> TrackedRun:
    """The runs of a folder in MLflow; what MLflow lacks is delivered first.

    Raises: UserError where MLflow has nothing of the run, with the reason.
    """
    found, report = read_tracked(run_dir), Report(run_dir.name)
    if needs_delivery(run_dir) and mlflow_is_installed():
        from gradus.pipeline.tracking.uploader import sync_run

        report = sync_run(run_dir)
        limit = time.monotonic() + FIRST_DELIVERY_TIMEOUT_SECONDS
        while (found := read_tracked(run_dir, report)) is None and report.busy and time.monotonic() < limit:
            time.sleep(0.2)
    if found is not None:
        return found
    reason = NO_MLFLOW if not mlflow_is_installed() else report.error or "nothing was recorded yet"
    raise UserError(
        f"MLflow has nothing of the run {run_dir.name!r}",
        where=str(run_dir),
        got=reason,
        fix=f"`{gradus_command('status', run_dir.name, runs=run_dir.parent)}` shows it without MLflow",
    )


def read_tracked(run_dir: Path, report: Report | None = None) -> TrackedRun | None:
    """The runs of a folder in MLflow as its files have them; None where nothing has been delivered to its store."""
    uri, _ = tracking_options(run_dir)
    position, ids = Position.read(run_dir / "journal.jsonl"), read_run_ids(run_dir)
    if not position.run_id or position.uri != redacted(uri):
        return None
    stages = tuple(run_id for label, run_id in ids.items() if label and not SET_ASIDE.search(label))
    note = report.message if report is not None and not report.busy else ""
    return TrackedRun(run_dir.name, uri, position.experiment_id, position.run_id, stages, note)


def page_of(runs: Sequence[TrackedRun]) -> Page:
    """The charts of one run with its stages, or of several runs without theirs.

    Raises: UserError where the runs are not in one store.
    """
    stores = {redacted(run.uri): run.name for run in reversed(runs)}
    if len(stores) > 1:
        raise UserError(
            "one page cannot show runs of several MLflow stores",
            got="; ".join(f"{name} is in {uri}" for uri, name in sorted(stores.items())),
            fix="open them one after the other",
        )
    ids = [run.run_id for run in runs]
    return charts_page([run.experiment for run in runs], ids + list(runs[0].stages) if len(runs) == 1 else ids)


def list_of_newest(runs_dir: Path) -> Page | None:
    """The list of runs in the experiment that was last delivered to; None where nothing was."""
    uri = redacted(newest_uri(runs_dir))
    files = sorted(runs_dir.glob(f"*/{POSITION_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = (position.experiment_id for position in map(Position.read, files) if position.uri == uri)
    experiment = next(filter(None, found), None)
    return list_page(experiment) if experiment else None


def has_own_pages(uri: str) -> bool:
    """Whether a store is a server, which shows its pages itself."""
    return uri.startswith(("http://", "https://"))


def where_to_look(run_dirs: Sequence[Path], name: str, runs_dir: Path) -> str:
    """Where the curves of finished runs are: an address, or the command that opens it, as no server may run now.

    ``name`` is what the command calls the runs. Empty where there is no MLflow.
    """
    if not mlflow_is_installed():
        return ""
    with contextlib.suppress(UserError):
        runs = [run for run in map(read_tracked, run_dirs) if run is not None]
        if runs and all(has_own_pages(run.uri) for run in runs):
            return page_of(runs).address(redacted(runs[0].uri))
    return gradus_command("ui", name, runs=runs_dir)


def save_view(server: str, page: Page) -> bool:
    """Save the view of a page on a server; returns whether its address may name it. Never raises.

    A server may refuse: then the page is shown as the UI lays it out.
    """
    import requests

    options = request_options()
    if options is None or len(page.saved) > MAX_VIEW:
        return False
    with contextlib.suppress(requests.RequestException):
        answers = [
            requests.post(
                f"{server}/api/2.0/mlflow/experiments/set-experiment-tag",
                json={"experiment_id": experiment, "key": f"{VIEW_TAG}{page.key}", "value": page.saved},
                timeout=SAVE_TIMEOUT_SECONDS,
                **options,
            )
            for experiment in page.experiments
        ]
        return all(answer.ok for answer in answers)
    return False
