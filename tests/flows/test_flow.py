"""The pipeline as a Prefect flow, against a real server: what is recorded, what is raised, and what survives what.

Most tests rehearse (`dry_execution.py`): run folders, records and the flow are real, only the training is left out.
"""

from __future__ import annotations

import asyncio
import doctest
import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from dry_execution import Rehearsal
from flow_runs import LABELS, Listener, api, artifacts, flow_run, open_run, task_states, work
from paths import REPOSITORY
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.flows import launch
from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.recorded import FLOW_FILE, flow_record
from gradus.flows.order import failure_line, run_plain
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.runs.run_folder import RESULT_FILE, RunFolder


def test_the_plain_engine_keeps_the_order(tmp_path: Path) -> None:
    run, execution = open_run(tmp_path), Rehearsal()
    summary = run_plain(run.path, Observer(), work(run, execution))
    assert execution.order == ["prepare", *LABELS]
    assert [stage["name"] for stage in summary["stages"]] == LABELS


def test_the_plain_engine_needs_no_prefect() -> None:
    code = "import sys, gradus.flows.order; print('prefect' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert shown.stdout.strip() == "False"


def test_a_run_is_recorded_stage_by_stage(staged: Any, tmp_path: Path) -> None:
    run, execution = open_run(tmp_path, "Quick.start_1"), Rehearsal()
    summary = staged.run_staged(run.path, Observer(), work(run, execution))
    assert execution.order == ["prepare", *LABELS]
    assert summary == execution.finish(run)
    record = flow_run(run)
    assert (record["name"], record["state_name"]) == ("Quick.start_1", "Completed")
    assert record["state"]["message"] == "accuracy 0.100 -> 0.500 in 6 s"
    assert record["parameters"] == {"run_dir": str(run.path), "host": socket.gethostname()}
    assert set(record["tags"]) == {"gradus", "tiny"}
    states = task_states(record["id"], 5)
    assert list(states.items()) == [(label, "Completed") for label in ["prepare", *LABELS]]
    shown = artifacts(record["id"])
    assert set(shown) == {f"quick-start-1-{name}" for name in ["stages", *(f"progress-{x}" for x in LABELS)]}
    rows = json.loads(shown["quick-start-1-stages"]["data"])
    assert [(row["stage"], row["accuracy after"], row["rollouts"]) for row in rows][-1] == ("srpo", "0.500", "48")
    assert shown["quick-start-1-progress-dapo"]["data"] == 100
    assert shown["quick-start-1-progress-dapo"]["description"] == "dapo: step 2 of 2, reward 0.500, 1,234 tokens/s"
    about = shown["quick-start-1-stages"]["description"]
    assert about.startswith("4 of 4 stages are done\n") and f"gradus ui Quick.start_1 --runs {tmp_path}" in about
    (own,) = [key for key, artifact in shown.items() if artifact["task_run_id"] is None]
    assert own.endswith("-stages"), "of several, none would be sure to be the first on the page"


def test_a_stage_that_is_done_shows_as_reused(staged: Any, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    first = staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    (run.stage_dir(3) / RESULT_FILE).unlink()
    assert staged.run_staged(run.path, Observer(), work(run, Rehearsal())) == first
    record = flow_run(run)
    expected = {"prepare": "Completed", "sft": "Reused", "dapo": "Reused", "gfpo": "Reused", "srpo": "Completed"}
    assert task_states(record["id"], 5) == expected
    rows = json.loads(artifacts(record["id"])["run-stages"]["data"])
    assert [row["note"] for row in rows] == ["reused", "reused", "reused", ""]


@pytest.mark.parametrize(
    "error",
    [
        StageFailed("5 updates in a row were not finite\nlast good checkpoint: step 40"),
        UserError("5 updates in a row were not finite", where="stages.gfpo", fix="lower the rate"),
        FileNotFoundError("5 updates in a row were not finite"),
        OSError(errno.ENOSPC, "5 updates in a row were not finite"),
        ZeroDivisionError("5 updates in a row were not finite"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_is_one_line_in_prefect_and_itself_to_the_caller(
    staged: Any, tmp_path: Path, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    run, execution = open_run(tmp_path), Rehearsal(gfpo=fail)
    with pytest.raises(type(error)) as caught:
        staged.run_staged(run.path, Observer(), work(run, execution))
    assert caught.value is error
    assert execution.order == ["prepare", "sft", "dapo", "gfpo"], "tried once, and nothing after it"
    record = flow_run(run)
    assert record["state_name"] == "Failed"
    assert record["state"]["message"].removeprefix("stage 'gfpo' failed: ") in str(error)
    expected = {"prepare": "Completed", "sft": "Completed", "dapo": "Completed", "gfpo": "Failed"}
    assert task_states(record["id"], 4) == expected
    assert capfd.readouterr() == ("", ""), "the terminal belongs to the run's own progress"


def test_a_disk_too_full_for_prefects_record_does_not_hide_why(
    staged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail() -> None:
        monkeypatch.setattr(f"{staged.FlowRecord.__module__}.write_sealed", full)
        raise StageFailed("there is no room for the checkpoint of step 10")

    run = open_run(tmp_path)
    with pytest.raises(StageFailed, match="no room for the checkpoint of step 10"):
        staged.run_staged(run.path, Observer(), work(run, Rehearsal(dapo=fail)))
    assert flow_run(run)["state_name"] == "Failed"


def test_an_infrastructure_error_is_tried_once_more(staged: Any, tmp_path: Path) -> None:
    errors, listener = [ConnectionResetError("the storage went away")], Listener()

    def fail_once() -> None:
        if errors:
            raise errors.pop()

    run, execution = open_run(tmp_path), Rehearsal(dapo=fail_once)
    staged.run_staged(run.path, listener, work(run, execution))
    assert execution.order == ["prepare", "sft", "dapo", "dapo", "gfpo", "srpo"]
    assert "stage 'dapo' failed: the storage went away; trying again" in listener.notes
    assert flow_run(run)["state_name"] == "Completed"


def test_and_not_for_ever(staged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TimeoutError("the storage is away")

    monkeypatch.setattr(staged._stage, "retry_delay_seconds", 0)
    run, execution = open_run(tmp_path), Rehearsal(sft=fail)
    with pytest.raises(TimeoutError):
        staged.run_staged(run.path, Observer(), work(run, execution))
    assert execution.order == ["prepare", "sft", "sft"]
    assert flow_run(run)["state"]["message"] == "stage 'sft' failed: the storage is away"


def test_a_server_that_dies_is_back_for_the_next_stage(staged: Any, tmp_path: Path) -> None:
    def kill_server() -> None:
        time.sleep(0.5)  # let the events of the earlier stages arrive
        os.kill(server.server_status()["pid"], signal.SIGKILL)
        while server.server_status()["running"]:
            time.sleep(0.01)

    run, listener = open_run(tmp_path), Listener()
    summary = staged.run_staged(run.path, listener, work(run, Rehearsal(dapo=kill_server)))
    assert [stage["name"] for stage in summary["stages"]] == LABELS
    record = flow_run(run)
    assert record["state_name"] == "Completed"
    states = task_states(record["id"], 5)
    assert (states["gfpo"], states["srpo"]) == ("Completed", "Completed")


def test_a_server_that_stays_away_costs_seconds_and_no_result(
    staged: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, listener, began = open_run(tmp_path), Listener(), time.monotonic()
    summary = staged.run_staged(run.path, listener, work(run, Rehearsal(dapo=server.stop_server)))
    assert time.monotonic() - began < 60
    assert [stage["name"] for stage in summary["stages"]] == LABELS
    assert any(note.startswith("Prefect failed (ConnectError") for note in listener.notes)
    assert capfd.readouterr() == ("", "")
    server.ensure_server()
    assert flow_run(run)["state_name"] == "Running"
    earlier = read_json(run.path / "prefect.json")["flow_run_id"]
    record = flow_record(run.path)
    write_sealed(run.path / "prefect.json", record | {"process": "gone"})
    staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    assert api(f"/flow_runs/{earlier}")["state_name"] == "Completed"


def test_where_no_server_can_start_the_run_goes_on(
    staged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADUS_HOME", str(tmp_path / "file"))
    run, execution, listener = open_run(tmp_path), Rehearsal(), Listener()
    staged.run_staged(run.path, listener, work(run, execution))
    assert execution.order == ["prepare", *LABELS]
    assert [note for note in listener.notes if note.endswith("the run continues without Prefect")]


def test_where_the_users_server_is_away_the_run_goes_on(
    staged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    run, execution, listener, began = open_run(tmp_path), Rehearsal(), Listener(), time.monotonic()
    staged.run_staged(run.path, listener, work(run, execution))
    assert execution.order == ["prepare", *LABELS]
    assert time.monotonic() - began < 60
    assert len(listener.notes) == 1 and "http://127.0.0.1:9/api" in listener.notes[0]
    assert capfd.readouterr() == ("", "")


def test_real_stages_through_the_flow(staged: Any, tmp_path: Path) -> None:
    write_task(tmp_path)
    config = pipeline([{"stage": "sft"}, {"stage": "gfpo", "group_size": 3}])
    run = RunFolder.create(tmp_path / "runs", config, "real", tmp_path / "tiny.yaml", STAGE_CONFIGS)
    summary = staged.run_staged(run.path, Observer())
    assert summary == run.summary()
    assert all(Path(stage["checkpoint"]).is_dir() for stage in summary["stages"])
    record = flow_run(run)
    assert record["state_name"] == "Completed"
    assert task_states(record["id"], 3) == {"prepare": "Completed", "sft": "Completed", "gfpo": "Completed"}


def test_what_a_failure_line_says() -> None:
    assert failure_line("gfpo", StageFailed("a\nb")) == "stage 'gfpo' failed: a"
    assert failure_line("gfpo", ValueError()) == "stage 'gfpo' failed: ValueError"
    assert failure_line("prepare", OSError("full")) == "preparing the data and the policy failed: full"


def test_the_examples_and_the_link(staged: Any) -> None:
    view = importlib.import_module("gradus.flows.orchestrator.pages")
    for module in (importlib.import_module("gradus.flows.session"), view):
        outcome = doctest.testmod(module)
        assert outcome.attempted and not outcome.failed
    told = view.curves_text("http://mlflow:5000", "gradus", Path("/runs/a"))
    assert "[http://mlflow:5000](http://mlflow:5000)" in told


def test_a_flow_runs_inside_an_event_loop_as_in_a_notebook(staged: Any, tmp_path: Path) -> None:
    run, execution, listener = open_run(tmp_path), Rehearsal(), Listener()

    async def cell() -> Any:
        return staged.run_staged(run.path, listener, work(run, execution))

    assert asyncio.run(cell()) == execution.finish(run)
    record = flow_run(run)
    assert record["state_name"] == "Completed" and len(task_states(record["id"], 5)) == 5
    assert set(artifacts(record["id"])) >= {"run-progress-sft", "run-stages"}
    assert not [note for note in listener.notes if "failed" in note]


@pytest.mark.parametrize("content", ["", "[1]", '{"state": null}', '{"state": null, "record": "0000000000000000"}'])
def test_a_damaged_record_of_flow_runs_stops_nobody(content: str, tmp_path: Path) -> None:
    """Prefect's server knows the flow runs of a folder anyway."""
    run = open_run(tmp_path)
    (run.path / FLOW_FILE).write_text(content)
    said: list[str] = []
    launch.settle_prefect_record(run, said.append)
    assert said == []
