"""Delivery to a real MLflow: every record arrives exactly once, and no event can stop the delivery of the others."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path

import pytest
from tracking_runs import client, full_run, log_steps, new_run, new_stage, steps_of

from gradus.pipeline.common.addresses import redacted, resolve_uri
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import Position, read_run_ids
from gradus.pipeline.tracking.ui import serve_ui
from gradus.pipeline.tracking.uploader import Uploader, sync_run


def test_every_kind_of_record_arrives(runs: Path) -> None:
    run = full_run(runs)
    report = sync_run(run)
    assert (report.error, report.rejected, report.undelivered, report.message) == (None, 0, 0, "")
    assert report.delivered == 2 + 13 + 4
    mlflow, ids = client(runs), report.run_ids
    assert ids == read_run_ids(run)
    parent, first, second = (mlflow.get_run(ids[label]) for label in ("", "01-first", "02-second"))
    assert [r.info.run_name for r in (parent, first, second)] == ["try", "1 first", "2 second"]
    assert [r.info.status for r in (parent, first, second)] == ["FINISHED", "FINISHED", "FAILED"]
    assert first.data.tags["mlflow.parentRunId"] == second.data.tags["mlflow.parentRunId"] == ids[""]
    assert first.data.params == {"lr": "0.0001"}
    assert first.data.tags["mlflow.note.content"] == "what happened"
    assert first.data.tags["checkpoint"] == str(run / "checkpoints")
    (data,) = first.inputs.dataset_inputs
    assert (data.dataset.name, json.loads(data.dataset.profile)) == ("sums", {"num_rows": 100})
    # quantiles of 0..4, interpolated: 0.05 * 4 = 0.2
    assert [first.data.metrics[f"advantage/{q}"] for q in ("p05", "p25", "p50", "p75", "p95")] == [0.2, 1, 2, 3, 3.8]
    files = {path.name: path for path in (runs / "mlartifacts" / ids["01-first"] / "artifacts").rglob("*.*")}
    assert files["step-000003.png"].read_bytes().startswith(b"\x89PNG")
    table = {"columns": ["question", "reward", "length"], "data": [["1+1", 1.0, None], ["2+2", None, 4]]}
    assert json.loads(files["step-000003.json"].read_text()) == table
    assert "config.yaml" in files
    assert len(mlflow.search_traces(locations=[first.info.experiment_id], run_id=ids["01-first"])) == 2
    point = mlflow.get_metric_history(ids["01-first"], "reward/mean")[0]
    written = [json.loads(line) for line in (run / "stages/01-first/journal.jsonl").read_text().splitlines()][1]
    assert (point.step, point.timestamp) == (1, written["time"])
    (model,) = mlflow.search_logged_models([first.info.experiment_id])
    assert (model.source_run_id, model.name) == (ids["01-first"], "try-first- 3")
    assert [(metric.key, metric.value) for metric in model.metrics] == [("heldout/accuracy", 0.5)]
    assert first.outputs.model_outputs[0].model_id == model.model_id


def test_a_replay_from_the_start_adds_nothing(runs: Path) -> None:
    run = full_run(runs)
    before = sync_run(run)
    for record in run.rglob("mlflow.json"):  # as if the uploader had died before it could save any id
        record.unlink()
    after = sync_run(run)
    assert (after.run_ids, after.delivered) == (before.run_ids, before.delivered)
    assert steps_of(runs, run) == [1, 2, 3]
    assert steps_of(runs, run, metric="heldout/accuracy") == [3]
    mlflow, experiment = client(runs), Position.read(run / "journal.jsonl").experiment_id
    assert len(mlflow.search_runs([experiment])) == 3
    assert len(mlflow.search_logged_models([experiment])) == 1
    assert len(mlflow.get_run(after.run_ids["01-first"]).outputs.model_outputs) == 1
    assert len(mlflow.search_traces(locations=[experiment])) == 2
    (table,) = (runs / "mlartifacts").rglob("step-000003.json")
    assert len(json.loads(table.read_text())["data"]) == 2


def test_a_resumed_stage_repeats_no_step(runs: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=10)
    stage.end("KILLED")
    sync_run(run)
    assert client(runs).get_run(read_run_ids(run)["01-first"]).info.status == "KILLED"
    resumed = Journal(stage.path)
    resumed.start("1 first", {}, {"lr": 2e-4})
    log_steps(resumed, range(7, 15))  # from the checkpoint of step 6, with new times
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    uploader.sync()
    assert steps_of(runs, run) == list(range(1, 15))
    reopened = client(runs).get_run(read_run_ids(run)["01-first"])
    assert reopened.info.status == "RUNNING"
    assert reopened.data.params["lr"] == "0.0001"  # immutable in MLflow
    assert reopened.data.tags["param_changed.lr"] == "0.0002"


def test_a_stage_that_begins_again_in_a_new_folder_is_a_new_run(runs: Path) -> None:
    run = new_run(runs)
    new_stage(run, steps=5)
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    uploader.sync()
    first = read_run_ids(run)["01-first"]
    (run / "stages/01-first").rename(run / "stages/01-first.attempt-1")
    time.sleep(0.002)  # attempts are told apart by their first millisecond
    new_stage(run, steps=3)
    report = uploader.sync()
    assert (report.error, report.undelivered) == (None, 0)
    ids = read_run_ids(run)
    assert ids["01-first.attempt-1"] == first != ids["01-first"]
    assert steps_of(runs, run) == [1, 2, 3]
    assert steps_of(runs, run, "01-first.attempt-1") == [1, 2, 3, 4, 5]


def test_long_values_and_bad_names_cost_nothing(runs: Path) -> None:
    run = new_run(runs)
    stage = Journal(run / "stages/01-first/journal.jsonl")
    stage.start(
        "1 first", {"long": "t" * 20_000}, {"prompt": "p" * 50_000, "a b@c": 1, **{f"p{i}": i for i in range(250)}}
    )
    stage.metrics(1, {"pass@1": 0.5, "100%": 1.0, "f(x) = y": 2.0, "/a//b": 3.0, "..": 4.0, "é": 5.0, "m" * 400: 6.0})
    stage.metrics(2, {f"many/{i}": float(i) for i in range(2_500)})
    report = sync_run(run)
    assert (report.error, report.rejected, report.undelivered) == (None, 0, 0)
    data = client(runs).get_run(report.run_ids["01-first"]).data
    assert (len(data.params["prompt"]), data.params["a b_at_c"], len(data.params)) == (6000, "1", 252)
    assert data.metrics["pass_at_1"] == 0.5
    assert sum(name.startswith("many/") for name in data.metrics) == 2_500
    (full,) = (runs / "mlartifacts").rglob("full.json")
    assert len(json.loads(full.read_text())["prompt"]) == 50_000


def test_what_mlflow_refuses_is_put_aside_and_the_rest_goes_on(runs: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=2)
    foreign = [
        {"kind": "metrics", "time": 1, "step": 3, "values": {"bad(name": 1.0, "reward/mean": 3 / 7}},
        {"kind": "hologram", "time": 1},
        {"kind": "end", "time": 1, "status": "EXHAUSTED"},
        {"kind": "artifact", "time": 1, "path": str(run / "missing")},
        {"kind": "table", "time": 1},
    ]
    with stage.path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in foreign)
        file.write("no json\n")
    log_steps(stage, range(4, 6))
    report = sync_run(run)
    assert (report.error, report.undelivered, report.rejected) == (None, 0, 5)
    assert "refused 5" in report.message
    assert steps_of(runs, run) == [1, 2, 3, 4, 5]
    rejected = [json.loads(line) for line in (run / "mlflow-rejected.jsonl").read_text().splitlines()]
    assert [entry["event"]["kind"] for entry in rejected] == ["metrics", "hologram", "end", "artifact", "table"]
    assert rejected[0]["event"]["values"][0][0] == "bad(name"


@pytest.mark.parametrize("answer", [503, 401])
def test_a_server_in_trouble_loses_nothing_and_rejects_nothing(runs: Path, answer: int) -> None:
    class Trouble(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(answer)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trouble) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = new_run(runs, uri=f"http://user:secret@127.0.0.1:{server.server_port}")
        new_stage(run, steps=2)
        report = sync_run(run)
        server.shutdown()
    assert (report.delivered, report.rejected, report.undelivered) == (0, 0, 4)
    assert report.error is not None
    assert "secret" not in report.message


def test_a_tracking_server_has_its_own_ui(runs: Path) -> None:
    new_run(runs, uri="http://mlflow.example:5000/")
    assert serve_ui(runs) == (None, "http://mlflow.example:5000")


def test_the_address_is_absolute_or_a_users_mistake(tmp_path: Path) -> None:
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///team.db", tmp_path) == f"sqlite:///{tmp_path}/team.db"
    assert resolve_uri("sqlite:////data/team.db", tmp_path) == "sqlite:////data/team.db"
    assert resolve_uri("postgresql+psycopg2://u:p@h/db", tmp_path) == "postgresql+psycopg2://u:p@h/db"
    assert redacted("postgresql://u:p@h/db") == "postgresql://h/db"
    for wrong in ("./mlruns", "file:///tmp/x", "localhost:5000"):
        with pytest.raises(UserError, match=r"tracking\.uri"):
            resolve_uri(wrong, tmp_path)
