"""Real stages that are interrupted, gone on with and tracked: one MLflow run each, every step once, the true status."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from child_scripts import TRAINER, exists, script, wait_for
from paths import SOURCES
from small_pipeline import STAGE_CONFIGS, pipeline, write_task
from tracking_runs import client, log_steps, new_run, new_stage, steps_of

from gradus.flows.order import run_plain
from gradus.pipeline.common import locks, yaml_text
from gradus.pipeline.common.addresses import resolve_uri
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.locks import file_lock
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.runs.description import open_parent_journal
from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
from gradus.pipeline.tracking.client import start_uploader
from gradus.pipeline.tracking.journal import Journal, journals, metric_history
from gradus.pipeline.tracking.position import Position, Report, needs_delivery, read_run_ids, upload_lock
from gradus.pipeline.tracking.uploader import Uploader, _passes, sync_run

STAGES = [{"stage": "sft", "steps": 3}, {"stage": "dapo", "group_size": 3, "steps": 4}]


def tiny(runs: Path, name: str = "run", **options: Any) -> RunFolder:
    """A run with a checkpoint every other step."""
    if not (runs / "task.jsonl").exists():
        write_task(runs)
    config = pipeline(STAGES, checkpoints={"every_steps": 2}, **options)
    return RunFolder.create(runs, config, name, runs / "tiny.yaml", STAGE_CONFIGS)


class Ends(Observer):
    """A signal, as it would come after that step; before it, whatever should happen while the run lives."""

    def __init__(self, label: str, step: int, meanwhile: Any = None):
        self.fated, self.meanwhile = (label, step), meanwhile

    def step_done(self, label: str, step: int, steps: int, metrics: Any) -> None:
        if self.meanwhile is not None:
            self.meanwhile()
            self.meanwhile = None
        if (label, step) == self.fated:
            raise Interrupted(signal.SIGTERM)


def statuses(runs: Path, run: RunFolder) -> dict[str, str]:
    ids = read_run_ids(run.path)
    return {label: client(runs).get_run(run_id).info.status for label, run_id in ids.items()}


def assert_once(runs: Path, run: RunFolder) -> None:
    """MLflow's curves are the journals': every step once, what was written first."""
    for label, path in journals(run.path):
        for name, wanted in metric_history(path).items():
            points = client(runs).get_metric_history(read_run_ids(run.path)[label], name)
            assert sorted(wanted.items()) == sorted((p.step, p.value) for p in points), f"{label}: {name}"


def test_a_run_that_goes_on_goes_on_in_mlflow(runs: Path) -> None:
    run = tiny(runs)
    with pytest.raises(Interrupted):
        run_plain(run.path, Ends("dapo", 3))
    assert sync_run(run.path).error is None
    ids = read_run_ids(run.path)
    assert statuses(runs, run) == {"": "KILLED", "01-sft": "FINISHED", "02-dapo": "KILLED"}
    seen: list[dict[str, str]] = []

    def look() -> None:
        Uploader(run.path, resolve_uri(None, runs), "gradus").sync()
        seen.append(statuses(runs, run))

    run_plain(run.path, Ends("", 0, look))
    assert seen == [{"": "RUNNING", "01-sft": "FINISHED", "02-dapo": "RUNNING"}]
    assert sync_run(run.path).error is None
    assert read_run_ids(run.path) == ids
    assert set(statuses(runs, run).values()) == {"FINISHED"}
    assert_once(runs, run)
    mlflow, experiment = client(runs), Position.read(run.path / "journal.jsonl").experiment_id
    assert len(mlflow.search_runs([experiment])) == 3
    assert len(mlflow.search_logged_models([experiment])) == 2
    children = mlflow.search_runs([experiment], f"tags.mlflow.parentRunId = '{ids['']}'")
    assert {child.info.run_id for child in children} == {ids["01-sft"], ids["02-dapo"]}


def test_a_signal_between_two_stages_ends_the_run_in_mlflow_too(runs: Path) -> None:
    class Leaves(Observer):
        def stage_finished(self, label: str, result: Any) -> None:
            raise Interrupted(signal.SIGINT)

    run = tiny(runs)
    with pytest.raises(Interrupted):
        run_plain(run.path, Leaves())
    sync_run(run.path)
    assert statuses(runs, run) == {"": "KILLED", "01-sft": "FINISHED"}


def test_with_a_server_that_hangs_and_then_is_dead_both_lives_train_at_full_speed(runs: Path) -> None:
    run = tiny(runs)  # as fast as it gets
    began = time.monotonic()
    run_plain(run.path, Observer())
    undisturbed = time.monotonic() - began
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        run = tiny(runs, "away", tracking={"uri": f"http://127.0.0.1:{hanging.getsockname()[1]}", "histogram_every": 1})
        began, uploader = time.monotonic(), start_uploader(run.path)
        with pytest.raises(Interrupted):
            run_plain(run.path, Ends("dapo", 3))
        first = time.monotonic() - began
        assert uploader.finish(timeout=0.5).delivered == 0
    began, uploader = time.monotonic(), start_uploader(run.path)
    run_plain(run.path, Observer())
    second = time.monotonic() - began
    assert "gradus sync" in uploader.finish(timeout=0.5).message
    assert max(first, second) < undisturbed + 5, "less than one time-out of a request"
    options = run.config.model_dump(mode="json")
    (run.path / "config.yaml").write_text(yaml_text.dump(options | {"tracking": {"histogram_every": 1}}))
    report = sync_run(run.path)
    assert (report.error, report.undelivered, report.rejected) == (None, 0, 0)
    assert set(statuses(runs, run).values()) == {"FINISHED"}
    assert_once(runs, run)


def test_a_run_that_everyone_was_killed_of_is_marked_by_sync_and_runs_again(runs: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=2)
    Uploader(run, resolve_uri(None, runs), "gradus").sync()  # and is killed together with the trainer
    assert needs_delivery(run), "there is nothing to deliver but the end"
    with locks.hold(run):
        assert not needs_delivery(run)
    sync_run(run)
    ids = read_run_ids(run)
    assert [client(runs).get_run(run_id).info.status for run_id in ids.values()] == ["KILLED", "KILLED"]
    assert not needs_delivery(run)
    stage.start("1 first")
    with locks.hold(run):
        sync_run(run)
    assert [client(runs).get_run(run_id).info.status for run_id in ids.values()] == ["KILLED", "RUNNING"]


def test_an_attempt_that_was_killed_and_set_aside_is_marked_by_the_next_launch(runs: Path) -> None:
    run = new_run(runs)
    new_stage(run, steps=2)
    Uploader(run, resolve_uri(None, runs), "gradus").sync()
    (run / "stages/01-first").rename(run / "stages/01-first.attempt-1")
    time.sleep(0.002)  # attempts are told apart by their first millisecond
    new_stage(run, steps=1)
    Uploader(run, resolve_uri(None, runs), "gradus").sync()
    found = {label: client(runs).get_run(run_id).info.status for label, run_id in read_run_ids(run).items()}
    assert found == {"": "RUNNING", "01-first": "RUNNING", "01-first.attempt-1": "KILLED"}


def test_a_position_that_another_attempt_left_is_not_taken_over(runs: Path) -> None:
    run = new_run(runs)
    new_stage(run, steps=3)
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    uploader.sync()
    first, old = run / "stages/01-first", (run / "stages/01-first/mlflow.json").read_text()
    first.rename(run / "stages/01-first.attempt-1")
    time.sleep(0.002)
    new_stage(run, steps=2)
    (first / "mlflow.json").write_text(old)  # written in the very moment in which the folder got its new name
    uploader.sync()
    ids = read_run_ids(run)
    assert ids["01-first"] != ids["01-first.attempt-1"]
    assert (steps_of(runs, run), steps_of(runs, run, "01-first.attempt-1")) == ([1, 2], [1, 2, 3])


class Gone:
    """A trainer as its uploader sees it in its last pass."""

    alive = False

    @property
    def ends(self) -> bool:
        return True

    def __init__(self, pid: int, asked: bool):
        self.pid, self.asked = pid, asked


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(("now_held_by", "status"), [(None, "KILLED"), ("itself", "KILLED"), ("another", "RUNNING")])
def test_the_last_pass_marks_what_nobody_else_will(
    runs: Path, asked: bool, now_held_by: str | None, status: str
) -> None:
    """Also after the trainer said that it was over, as it does where it fails before or between its stages."""
    run = new_run(runs)
    pid = {None: 1, "itself": os.getpid(), "another": 1}[now_held_by]
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    trainer: Any = Gone(pid, asked)
    if now_held_by is None:
        _passes(uploader, trainer, Report(run.name))
    else:
        with locks.hold(run):
            _passes(uploader, trainer, Report(run.name))
    assert client(runs).get_run(read_run_ids(run)[""]).info.status == status


def test_a_stage_with_much_to_send_does_not_hold_up_the_news(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a server was away: that the run goes on is told before all that it missed."""
    run = new_run(runs)
    stage = new_stage(run)
    for step in range(1, 21):
        stage.histogram(step, "advantage", [0.0, 1.0])
    told: list[tuple[str, bool]] = []

    class Living(Gone):
        @property
        def ends(self) -> bool:
            positions = [Position.read(folder / "journal.jsonl") for folder in (run, stage.path.parent)]
            if len(told) == 2:
                Journal(run / "journal.jsonl").end("KILLED")
            told.append((positions[0].status, positions[1].offset == stage.path.stat().st_size))
            return told[-1] == ("KILLED", False) or len(told) > 10

    monkeypatch.setattr("gradus.pipeline.tracking.uploader.PASS_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr("gradus.pipeline.tracking.uploader.PASS_INTERVAL_SECONDS", 0.0)
    living: Any = Living(os.getpid(), True)
    living.heard = threading.Event()
    report = _passes(Uploader(run, resolve_uri(None, runs), "gradus"), living, Report(run.name))
    assert told[-1] == ("KILLED", False), "the run's end before the rest of its stage"
    assert report.undelivered == 0


def uploading(run: Path) -> bool:
    with file_lock(upload_lock(run), wait=False) as free:
        return not free


def test_an_old_uploader_in_its_last_pass_does_not_end_what_a_new_launch_has_begun(runs: Path) -> None:
    run = new_run(runs)
    with file_lock(runs / "mlflow.db.lock"):  # the uploader waits for it to open the store
        with script(TRAINER.format(run=str(run), tests=str(SOURCES))) as trainer:
            assert trainer.stdout is not None
            old = int(trainer.stdout.readline())
            wait_for(lambda: uploading(run))
            os.kill(trainer.pid, signal.SIGKILL)
        held = locks.hold(run)
        held.__enter__()
        Journal(run / "journal.jsonl").start("try")
        stage = Journal(run / "stages/01-first/journal.jsonl")
        stage.start("1 first")
        log_steps(stage, range(4, 8))
        new = start_uploader(run)
    wait_for(lambda: not exists(old))
    ids = read_run_ids(run)
    assert {client(runs).get_run(run_id).info.status for run_id in ids.values()} == {"RUNNING"}
    stage.end("FINISHED")
    Journal(run / "journal.jsonl").end("FINISHED")
    report = new.finish(timeout=60)
    held.__exit__(None, None, None)
    assert (report.undelivered, report.run_ids) == (0, ids)
    assert {client(runs).get_run(run_id).info.status for run_id in ids.values()} == {"FINISHED"}
    assert steps_of(runs, run) == [1, 2, 3, 4, 5, 6, 7]


def test_a_fork_says_so_from_its_beginning_to_its_end(runs: Path) -> None:
    origin = tiny(runs, "origin")
    run_plain(origin.path, Observer())
    sync_run(origin.path)
    ids = read_run_ids(origin.path)
    # what `gradus fork` writes
    fork = tiny(runs, "fork")
    changes = ["stages.dapo.lr: 0.0001 -> 5e-05", 'sampling.x: null -> "a | b"']
    of = {"run": "origin", "stage": "dapo", "checkpoint": "c0ffee", "changes": changes, "mlflow_run_id": ids[""]}
    record = {**fork.record, "fork": of, "data": "../origin/data"}
    write_sealed(fork.path / RUN_FILE, record)
    write_sealed(fork.path / "start.json", read_sealed(origin.path / "start.json") | {"checkpoint": "../origin/start"})
    result = read_sealed(origin.stage_dir(0) / "result.json")
    checkpoint = f"../../../origin/stages/01-sft/{result['checkpoint']}"
    shared = {"shared": "origin", "checkpoint": checkpoint, "mlflow_run_id": ids["01-sft"]}
    write_sealed(fork.stage_dir(0) / "result.json", result | shared)
    fork = RunFolder(fork.path, STAGE_CONFIGS)

    open_parent_journal(fork, {})
    sync_run(fork.path)
    tags = client(runs).get_run(read_run_ids(fork.path)[""]).data.tags
    begun = tags["mlflow.note.content"]
    experiment = Position.read(origin.path / "journal.jsonl").experiment_id
    assert begun.startswith(f"**Fork** of [origin](#/experiments/{experiment}/runs/{ids['']})")
    assert "`stages.dapo.lr` 0.0001 -> 5e-05" in begun
    assert tags["gradus.forked_from_run_id"] == ids[""] and tags["changed.stages.dapo.lr"] == "0.0001 -> 5e-05"
    summary = run_plain(fork.path, Observer())
    sync_run(fork.path)
    known = read_run_ids(fork.path)
    assert set(known) == {"", "02-dapo"}, "what is shared has its run already"
    assert summary["stages"][0]["mlflow_run_id"] == ids["01-sft"]
    curves = [client(runs).get_metric_history(run_id, "accuracy") for run_id in (ids[""], known[""])]
    points, shared_points = ([(point.step, point.value) for point in curve] for curve in curves)
    assert [step for step, _ in shared_points] == [0, 1, 2] and shared_points[:2] == points[:2], "once, resumed or not"
    note = client(runs).get_run(known[""]).data.tags["mlflow.note.content"]
    assert note.startswith(begun) and "| stage | steps |" in note
    child = client(runs).get_run(known["02-dapo"])
    assert child.data.tags["gradus.forked_from_run_id"] == ids["02-dapo"]
    assert child.data.tags["mlflow.parentRunId"] == known[""]
