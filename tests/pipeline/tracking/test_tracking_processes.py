"""The uploader and the UI as processes: if one is dead, slow, killed or started twice, no record is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from child_scripts import TRAINER, exists, script, wait_for
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _verify_schema, create_sqlalchemy_engine
from paths import SOURCES
from tracking_runs import client, full_run, log_steps, new_run, new_stage, steps_of

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import file_lock
from gradus.pipeline.tracking import ui
from gradus.pipeline.tracking.client import start_uploader
from gradus.pipeline.tracking.failures import one_line
from gradus.pipeline.tracking.position import Position, count_undelivered, read_run_ids, upload_lock
from gradus.pipeline.tracking.ui import serve_ui, stop_ui
from gradus.pipeline.tracking.uploader import make_database, sync_run

DEAD = "http://127.0.0.1:1"


def test_a_dead_server_never_holds_training_up_and_sync_delivers_later(runs: Path) -> None:
    run = new_run(runs, uri=DEAD)
    started = time.monotonic()
    handle = start_uploader(run)
    stage = new_stage(run, steps=200)
    stage.end()
    assert time.monotonic() - started < 5.0
    report = handle.finish(timeout=2.0)
    assert time.monotonic() - started < 10.0
    assert report.undelivered == count_undelivered(run) == 203
    assert DEAD in report.message and "gradus sync" in report.message
    assert handle.process is not None and handle.process.poll() is not None
    (run / "config.yaml").write_text("tracking: {uri: null}")
    delivered = sync_run(run)
    assert (delivered.undelivered, delivered.error) == (0, None)
    assert steps_of(runs, run) == list(range(1, 201))


def test_an_uploader_that_cannot_start_is_only_reported(runs: Path) -> None:
    run = new_run(runs, uri="ftp://nowhere")
    report = start_uploader(run).finish()
    assert report.undelivered == 1
    assert "cannot track" in (report.error or "")


def test_kill_nine_in_the_middle_then_sync_gives_every_step_once(runs: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=8_000)
    handle = start_uploader(run)
    assert handle.process is not None
    wait_for(lambda: Position.read(stage.path).offset > 10_000)
    handle.process.kill()
    report = handle.finish()
    assert 0 < report.undelivered < 8_002
    sync_run(run)
    assert count_undelivered(run) == 0
    assert steps_of(runs, run) == list(range(1, 8_001))


def test_two_uploaders_take_turns(runs: Path) -> None:
    run = new_run(runs)
    with file_lock(upload_lock(run)):
        report = sync_run(run)
    assert report.busy and report.undelivered == 1 and "another process" in report.message
    handle, stage = start_uploader(run), new_stage(run)
    for step in range(1, 31):
        log_steps(stage, range(step, step + 1))
        if step % 5 == 0:
            sync_run(run)
    assert handle.finish(timeout=120).undelivered == 0
    assert steps_of(runs, run) == list(range(1, 31))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_trainer_takes_its_uploader_along_after_a_last_pass(runs: Path) -> None:
    run = new_run(runs)
    with script(TRAINER.format(run=str(run), tests=str(SOURCES))) as trainer:
        assert trainer.stdout is not None
        uploader = int(trainer.stdout.readline())
        assert exists(uploader)
        os.kill(trainer.pid, signal.SIGKILL)
        wait_for(lambda: not exists(uploader))
    assert steps_of(runs, run) == [1, 2, 3, 4, 5]
    assert {client(runs).get_run(run_id).info.status for run_id in read_run_ids(run).values()} == {"KILLED"}


def test_two_uploaders_may_create_the_store_together(tmp_path: Path) -> None:
    folders = [new_run(tmp_path / "new", name) for name in ("a", "b")]
    command = [sys.executable, "-m", "gradus.pipeline.tracking.uploader"]
    children = [subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True) for folder in folders]
    reports = [json.loads(child.communicate(timeout=180)[0]) for child in children]
    assert [(report["error"], report["undelivered"]) for report in reports] == [(None, 0)] * 2
    assert len(client(tmp_path / "new").search_runs([Position.read(folders[0] / "journal.jsonl").experiment_id])) == 2


INTERFACE = """
import sys, time
sys.path.insert(0, {tests!r})
from gradus.pipeline.tracking.ui import serve_ui
process, url = serve_ui({runs!r}, port={port})
print(url, flush=True)
time.sleep(600)
"""


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def test_the_ui_serves_a_runs_folder_that_has_moved_and_dies_with_its_caller(runs: Path, tmp_path: Path) -> None:
    sync_run(full_run(runs))
    runs = runs.rename(tmp_path / "moved")
    for name in ("mlflow.py", "uvicorn.py"):  # the user's own, where MLflow's server would look for modules first
        (runs / name).write_text("raise SystemExit")
    root = str(SOURCES)
    with script(INTERFACE.format(tests=root, runs=str(runs), port="None")) as caller:
        assert caller.stdout is not None
        url = caller.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert answers(f"{url}/health")
        with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as store:
            places = [place for (place,) in store.execute("SELECT artifact_uri FROM runs")]
        assert len(places) == 3 and all(place.startswith(f"{(runs / 'mlartifacts').as_uri()}/") for place in places)
        with pytest.raises(UserError, match="cannot listen"):
            serve_ui(runs, port=int(url.rpartition(":")[2]))
        os.kill(caller.pid, signal.SIGKILL)
        wait_for(lambda: not answers(f"{url}/health"))


class Healthy(BaseHTTPRequestHandler):
    """A server of somebody else, which says of itself what MLflow's says."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_was_faster_to_take_the_port_is_not_mistaken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        free, looked = ui._free_port, iter([other.server_port])
        monkeypatch.setattr(ui, "_free_port", lambda host, wanted: next(looked, None) or free(host, wanted))
        process, url = serve_ui(tmp_path)
        assert process is not None and url.rpartition(":")[2] != str(other.server_port) and answers(f"{url}/health")
        stop_ui(process)
        other.shutdown()


def test_the_ui_shows_mlflows_own_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, and longer than the header of one would be\n" * 10)
    with pytest.raises(UserError, match="did not start") as told:
        serve_ui(tmp_path)
    assert told.value.got == "(sqlite3.DatabaseError) file is not a database"


def test_a_database_of_another_version_of_mlflow_is_told_with_what_to_do(tmp_path: Path) -> None:
    """MLflow calls a newer one out of date, too, and has a gap in the command that it proposes."""
    make_database(tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'abcdef012345'")
    with pytest.raises(MlflowException) as caught:
        _verify_schema(create_sqlalchemy_engine(f"sqlite:///{tmp_path}/mlflow.db"))
    with pytest.raises(UserError, match="did not start") as told:
        serve_ui(tmp_path)
    for said in (str(told.value.got), one_line(caught.value)):
        assert "another version of MLflow than the installed" in said and "found version abcdef012345" in said
        assert "<" not in said and "..." not in said


def test_a_folder_that_cannot_be_written_is_told_with_what_to_do() -> None:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs a folder that nobody can write to, root included")
    with pytest.raises(UserError, match="can be written") as told:
        serve_ui("/sys/kernel")
    assert str(told.value.where).startswith("/sys/kernel/") and "--runs" in str(told.value.fix)
