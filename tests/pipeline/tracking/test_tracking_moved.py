"""A runs folder that moves between two lives of a run: curves continue, and nothing is written to the old place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Gradus
from paths import search_path
from small_pipeline import STAGE_CONFIGS, pipeline, write_task
from tracking_runs import client, log_steps, new_run, new_stage, steps_of

from gradus.flows.order import run_plain
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import Journal, journals, metric_history, read_events
from gradus.pipeline.tracking.position import count_undelivered, read_run_ids
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


class EndsAt(Observer):
    """A signal, as it would come after that step."""

    def __init__(self, label: str, step: int):
        self.fated = label, step

    def step_done(self, label: str, step: int, steps: int, metrics: Any) -> None:
        if (label, step) == self.fated:
            raise Interrupted(signal.SIGTERM)


def mentions(folder: Path, place: Path) -> list[str]:
    """The files of a runs folder that hold this path, and the values in its store; what MLflow itself wrote of models
    apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("mlflow.db", "MLmodel")]
    found = [str(path.relative_to(folder)) for path in files if str(place).encode() in path.read_bytes()]
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store:
        return found + [line for line in store.iterdump() if str(place) in line]


def test_a_real_run_that_is_stopped_moved_and_resumed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", search_path())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_task(tmp_path)
    stages = [{"stage": "sft", "steps": 3}, {"stage": "dapo", "group_size": 3, "steps": 4}]
    config = pipeline(stages, checkpoints={"every_steps": 1})
    run = RunFolder.create(runs, config, "run", tmp_path / "tiny.yaml", STAGE_CONFIGS)
    with run.lock(), pytest.raises(Interrupted):
        run_plain(run.path, EndsAt("dapo", 2))
    assert sync_run(run.path).error is None
    ids = read_run_ids(run.path)

    moved = tmp_path / "elsewhere" / "of-another-name"
    moved.parent.mkdir()
    shutil.move(runs, moved)
    runs.write_text("a file, so that nothing can be written below the old place")
    said = Gradus(tmp_path)("resume", "run", "--runs", str(moved), "--engine", "none").output
    assert "continued after step 2" in said or "continued after step 1" in said
    run = RunFolder(moved / "run", STAGE_CONFIGS)
    if count_undelivered(run.path):  # the launch waits half a minute for it, which is too short on a busy machine
        second_life(run.path)
    assert count_undelivered(run.path) == 0 and not (run.path / "mlflow-rejected.jsonl").exists()
    assert (run.state(), read_run_ids(run.path)) == ("done", ids)
    for label, journal in journals(run.path):
        for name, values in metric_history(journal).items():
            assert steps_of(moved, run.path, label, name) == sorted(values), (label, name)
        found = client(moved).get_run(ids[label])
        assert found.info.status == "FINISHED"
        assert found.info.artifact_uri == (moved / "mlartifacts" / ids[label] / "artifacts").as_uri()
    for label in ("01-sft", "02-dapo"):
        assert (moved / "mlartifacts" / ids[label] / "artifacts" / "samples").is_dir()
        assert Path(client(moved).get_run(ids[label]).data.tags["checkpoint"]).is_dir()
    assert mentions(moved, runs) == [] and runs.is_file()


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
