"""A runs folder that moves between two lives of a run: curves continue, and nothing is written to the old place."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from paths import search_path
from tracking_runs import client, log_steps, new_run, new_stage, steps_of

from gradus.pipeline.tracking.journal import Journal, read_events
from gradus.pipeline.tracking.position import read_run_ids
from gradus.pipeline.tracking.uploader import sync_run


def second_life(run: Path) -> dict[str, Any]:
    """The report of another process that delivers; MLflow remembers places of artifacts for as long as one lives."""
    command = [sys.executable, "-m", "gradus.pipeline.tracking.uploader", str(run)]
    environment = {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, timeout=120).stdout)


def test_a_runs_folder_that_moves_between_two_lives(runs: Path, tmp_path: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=2)
    stage.artifact(run / "stages" / "01-first" / "journal.jsonl")
    stage.table("samples", 2, [{"question": "1+1"}])
    stage.model("first", run / "stages" / "01-first" / "checkpoints" / "step-2", 2)
    assert sync_run(run).error is None
    text = stage.path.read_text()
    assert str(tmp_path) not in text
    stage._append("artifact", path=str(run / "config.yaml"))  # as an earlier version wrote it
    stage.close()

    moved = tmp_path / "elsewhere"
    shutil.move(runs, moved)
    run = moved / run.name
    stage = Journal(run / "stages" / "01-first" / "journal.jsonl")
    stage.start("1 first")
    log_steps(stage, range(2, 5))
    stage.table("samples", 4, [{"question": "2+2"}])
    stage.model("second", run / "stages" / "01-first" / "checkpoints" / "step-4", 4)
    report = second_life(run)
    assert (report["error"], report["rejected"], report["undelivered"]) == (None, 0, 0)
    assert steps_of(moved, run) == [1, 2, 3, 4]
    found = client(moved).get_run(read_run_ids(run)["01-first"])
    place = moved / "mlartifacts" / found.info.run_id / "artifacts"
    assert found.info.artifact_uri == place.as_uri()
    names = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert names == {"journal.jsonl", "config.yaml", "samples/step-000002.json", "samples/step-000004.json"}
    assert found.data.tags["checkpoint"] == str(run / "stages" / "01-first" / "checkpoints" / "step-4")
    assert not runs.exists(), "nothing is written to the old place"


def test_artifacts_that_cannot_be_written_are_set_aside_and_curves_go_on(runs: Path, tmp_path: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=1)
    assert sync_run(run).error is None
    (tmp_path / "file").write_text("")
    with sqlite3.connect(runs / "mlflow.db") as store:  # a place that the user chose, under a file
        place = f"{(tmp_path / 'file').as_uri()}/theirs"
        store.execute("UPDATE runs SET artifact_uri = ?", (place,))
    stage.table("samples", 1, [{"question": "1+1"}])
    stage.histogram(1, "advantage", [0.0, 1.0])
    log_steps(stage, range(2, 4))
    report = sync_run(run)
    assert (report.error, report.rejected, report.undelivered) == (None, 2, 0)
    assert "mlflow-rejected.jsonl" in report.message
    assert steps_of(runs, run) == [1, 2, 3] and steps_of(runs, run, metric="advantage/p50") == [1]
    kept = [json.loads(line) for line in (run / "mlflow-rejected.jsonl").read_text().splitlines()]
    assert [line["event"]["kind"] for line in kept] == ["table", "histogram"]
    assert len(read_events(stage.path)[0]) == 6
