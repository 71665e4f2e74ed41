"""Flows that are stopped, killed, tried again and gone on with: Prefect tells the same story as the run folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dry_execution
import pytest
from dry_execution import Rehearsal
from flow_runs import LABELS, api, artifacts, flow_run, open_run, task_states, work
from paths import HELPERS, search_path
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.flows.orchestrator import server
from gradus.flows.orchestrator.recorded import flow_record
from gradus.flows.order import run_plain
from gradus.pipeline.common.files import read_json, write_json
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
from gradus.pipeline.tracking.journal import metric_history, read_events

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(kind: int) -> Callable[[], None]:
    """Something that happens in a stage: the signal comes, and the stage would go on for long."""

    def strike() -> None:
        os.kill(os.getpid(), kind)
        time.sleep(60)

    return strike


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_in_the_work_shows_as_stopped(
    staged: Any, tmp_path: Path, kind: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    run, began, before = open_run(tmp_path), time.monotonic(), signal.getsignal(kind)
    with pytest.raises(Interrupted) as caught:
        staged.run_staged(run.path, Observer(), work(run, Rehearsal(dapo=send(kind))))
    assert caught.value.code == 128 + kind
    assert time.monotonic() - began < 30 and signal.getsignal(kind) is before
    record, message = flow_run(run), "stopped at dapo; `gradus resume run` continues the run"
    assert (record["state_type"], record["state_name"]) == ("CANCELLED", "Stopped")
    assert record["state"]["message"] == message
    assert task_states(record["id"], 3) == {"prepare": "Completed", "sft": "Completed", "dapo": "Stopped"}
    known = read_json(run.path / "prefect.json")
    assert (known["outcome"], known["message"], known["state"]) == ("stopped", message, "Stopped")
    assert capfd.readouterr() == ("", "")


def test_what_the_work_raises_by_itself_is_no_signal(staged: Any, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    run = open_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        staged.run_staged(run.path, Observer(), work(run, Rehearsal(dapo=interrupt)))
    record = flow_run(run)
    assert record["state_name"] == read_json(run.path / "prefect.json")["state"] == "Crashed"
    assert task_states(record["id"], 3)["dapo"] == "Crashed"


class Talkative(Observer):
    """Sends a signal when the user is told that the flow run has a page: no stage has begun."""

    def __init__(self, kind: int):
        self.kind = kind

    def note(self, text: str) -> None:
        if text.startswith("Prefect shows this run at"):
            os.kill(os.getpid(), self.kind)


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_while_prefect_talks_waits_for_it_and_for_no_stage(
    staged: Any, tmp_path: Path, kind: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    run, execution = open_run(tmp_path), Rehearsal()
    with pytest.raises(Interrupted) as caught:
        staged.run_staged(run.path, Talkative(kind), work(run, execution))
    assert (caught.value.code, execution.order) == (128 + kind, [])
    assert flow_run(run)["state_name"] == "Stopped"
    assert flow_run(run)["state"]["message"] == "stopped at prepare; `gradus resume run` continues the run"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("request_of_prefect", ["read_task_runs", "create_flow_run", "set_flow_run_state"])
def test_a_signal_in_any_of_prefects_requests_ends_as_interrupted(
    staged: Any, tmp_path: Path, kind: signal.Signals, request_of_prefect: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    client: Any = staged.FlowRecord.settle.__globals__["SyncPrefectClient"]
    real, run = getattr(client, request_of_prefect), open_run(tmp_path)
    if request_of_prefect == "read_task_runs":  # made for an earlier launch that was killed
        staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
        record = flow_record(run.path)
        write_sealed(run.path / "prefect.json", record | {"process": "gone", "state": None})

    def struck(self: Any, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(client, request_of_prefect, real)
        os.kill(os.getpid(), kind)
        return real(self, *args, **options)

    monkeypatch.setattr(client, request_of_prefect, struck)
    began, execution = time.monotonic(), Rehearsal()
    with pytest.raises(Interrupted) as caught:
        staged.run_staged(run.path, Observer(), work(run, execution))
    assert (caught.value.code, execution.order) == (128 + kind, [])
    assert time.monotonic() - began < 10
    assert capfd.readouterr() == ("", "")


def test_a_signal_before_a_second_try_is_heard(staged: Any, tmp_path: Path) -> None:
    class Impatient(Observer):
        def note(self, text: str) -> None:
            if text.endswith("trying again"):
                os.kill(os.getpid(), signal.SIGTERM)

    def fail() -> None:
        raise ConnectionResetError("the storage went away")

    run, execution = open_run(tmp_path), Rehearsal(sft=fail)
    with pytest.raises(Interrupted):
        staged.run_staged(run.path, Impatient(), work(run, execution))
    assert execution.order == ["prepare", "sft"]
    assert task_states(flow_run(run)["id"], 2)["sft"] == "Stopped"


IMPATIENCE = """
import os, time
for _ in range(3):
    time.sleep(0.7)
    os.kill({pid}, {kind})
"""


def test_a_user_need_not_wait_for_a_prefect_that_hangs(staged: Any, tmp_path: Path) -> None:
    pid, impatience = server.server_status()["pid"], IMPATIENCE.format(pid=os.getpid(), kind=int(signal.SIGINT))
    senders = []

    class Struck(Observer):
        def note(self, text: str) -> None:
            if text.startswith("Prefect shows this run at"):
                os.kill(pid, signal.SIGSTOP)
                senders.append(subprocess.Popen([sys.executable, "-c", impatience]))

    run, began = open_run(tmp_path), time.monotonic()
    try:
        with pytest.raises(Interrupted) as caught:
            staged.run_staged(run.path, Struck(), work(run, Rehearsal()))
    finally:
        os.kill(pid, signal.SIGCONT)
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        senders[0].wait()
        signal.signal(signal.SIGINT, previous)
    assert caught.value.code == 130
    assert time.monotonic() - began < 20


def child(run: RunFolder, kind: signal.Signals) -> subprocess.Popen[str]:
    """Another process that works on the run and sends itself this signal in its third stage."""
    command = [sys.executable, dry_execution.__file__, str(run.path), str(int(kind))]
    environment = {**os.environ, "PYTHONPATH": search_path(HELPERS)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_sigterm_leaves_as_the_command_line_expects(staged: Any, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    process = child(run, signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (143, "")
    assert flow_run(run)["state_name"] == "Stopped"


def test_after_sigkill_the_next_launch_puts_the_record_right(staged: Any, tmp_path: Path) -> None:
    run = open_run(tmp_path)
    process = child(run, signal.SIGKILL)
    assert process.wait(timeout=100) == -signal.SIGKILL
    killed = flow_run(run)
    assert killed["state_name"] == "Running", "no one could say otherwise"
    assert task_states(killed["id"], 3)["gfpo"] == "Running"
    with pytest.raises(Interrupted):
        staged.run_staged(run.path, Observer(), work(run, Rehearsal(gfpo=send(signal.SIGINT))))
    after = api(f"/flow_runs/{killed['id']}")
    assert after["state_name"] == "Crashed"
    assert str(process.pid) in after["state"]["message"]
    assert task_states(killed["id"], 4)["gfpo"] == "Crashed"
    staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    record = flow_run(run)
    assert (record["id"] != killed["id"], record["state_name"]) == (True, "Completed")
    states = task_states(record["id"], 5)
    assert [states[label] for label in LABELS] == ["Reused", "Reused", "Completed", "Completed"]
    # and the new one shows where it comes from
    assert (set(killed["tags"]), set(record["tags"])) == ({"gradus", "tiny"}, {"gradus", "tiny", "resumed"})
    earlier = read_json(run.path / "prefect.json")["earlier"]
    assert (earlier[0]["flow_run_id"], earlier[0]["state"]) == (killed["id"], "Crashed")
    text = artifacts(record["id"])["run-stages"]["description"]
    stopped, crashed = [line for line in text.splitlines() if line.startswith("- ")]
    assert f"({earlier[1]['page']}): Stopped" in stopped and f"({earlier[0]['page']}): Crashed" in crashed
    assert earlier[0]["page"].endswith(killed["id"])


def test_a_flow_run_that_a_kill_left_unrecorded_is_settled_and_no_other(staged: Any, tmp_path: Path) -> None:
    """Prefect had made it, and the process was killed before prefect.json knew of it."""
    run, flow = open_run(tmp_path), api("/flows/", {"name": "staged-pipeline"})["id"]
    places = {"own": run.path, "other's": run.path.with_name("another"), "before a move": tmp_path / "was" / run.name}
    places["of the same name"] = tmp_path / "still there" / run.name
    places["of the same name"].mkdir(parents=True)
    parameters = {name: {"run_dir": str(path), "host": socket.gethostname()} for name, path in places.items()}
    parameters["elsewhere"] = {**parameters["own"], "host": "another"}
    pending = {"type": "PENDING", "name": "Pending"}
    made = {
        name: api("/flow_runs/", {"flow_id": flow, "parameters": each, "tags": ["gradus"], "state": pending})["id"]
        for name, each in parameters.items()
    }
    staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    states = {name: api(f"/flow_runs/{each}")["state_name"] for name, each in made.items()}
    crashed = {"own": "Crashed", "before a move": "Crashed"}
    assert states == dict.fromkeys(made, "Pending") | crashed
    assert flow_run(run)["state_name"] == "Completed"


def test_what_could_not_be_settled_is_settled_later(staged: Any, tmp_path: Path) -> None:
    """The server was away at the end of one launch, and the next one could not reach it either."""
    run = open_run(tmp_path)
    with pytest.raises(Interrupted):
        staged.run_staged(run.path, Observer(), work(run, Rehearsal(sft=send(signal.SIGTERM))))
    staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    record, lost = flow_record(run.path), {"process": "gone", "state": None}
    (earlier,) = record["earlier"]
    write_sealed(run.path / "prefect.json", record | {"earlier": [earlier | lost]})
    api(f"/flow_runs/{earlier['flow_run_id']}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    settled = api(f"/flow_runs/{earlier['flow_run_id']}")
    assert (settled["state_name"], settled["state"]["message"]) == ("Stopped", earlier["message"])
    assert [entry["state"] for entry in read_json(run.path / "prefect.json")["earlier"]] == ["Stopped", "Completed"]


def test_a_fork_shows_its_origin(staged: Any, tmp_path: Path) -> None:
    origin, fork = open_run(tmp_path, "origin"), open_run(tmp_path, "fork")
    staged.run_staged(origin.path, Observer(), work(origin, Rehearsal()))
    changes = ["stages.gfpo.lr: 0.0001 -> 5e-05"]
    of = {"run": "origin", "stage": "gfpo", "checkpoint": "c0ffee", "changes": changes, "mlflow_run_id": None}
    write_sealed(fork.path / RUN_FILE, (read_sealed(fork.path / RUN_FILE) or {}) | {"fork": of})
    shared = {**read_json(origin.stage_dir(0) / "result.json"), "shared": "origin", "checkpoint": "."}
    write_json(fork.stage_dir(0) / "result.json", shared)
    fork = RunFolder(fork.path, STAGE_CONFIGS)
    staged.run_staged(fork.path, Observer(), work(fork, Rehearsal()))
    record = flow_run(fork)
    assert set(record["tags"]) == {"gradus", "tiny", "fork"}
    shown = artifacts(record["id"])
    text, page = shown["fork-stages"]["description"], read_json(origin.path / "prefect.json")["page"]
    assert f"a fork of [origin]({page})" in text and changes[0] in text
    assert json.loads(shown["fork-stages"]["data"])[0]["note"] == "shared with origin"


class Failing(Observer):
    """The disk fails once, right after a step of a stage."""

    def __init__(self, label: str, step: int, error: Exception):
        self.fated, self.error = (label, step), [error]
        self.steps: list[tuple[str, int]] = []
        self.begun: list[tuple[str, int]] = []

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        self.begun.append((label, done))

    def step_done(self, label: str, step: int, steps: int, metrics: Any) -> None:
        self.steps.append((label, step))
        if (label, step) == self.fated and self.error:
            raise self.error.pop()


def test_a_second_try_goes_on_from_the_checkpoint_of_the_first(staged: Any, tmp_path: Path) -> None:
    """A real stage: it takes the remaining steps only, and is what it would have been."""
    write_task(tmp_path)
    stages = [{"stage": "sft", "steps": 4}, {"stage": "gfpo", "group_size": 3, "steps": 5}]
    config = pipeline(stages, checkpoints={"every_steps": 1})
    folders = [RunFolder.create(tmp_path / "runs", config, n, tmp_path / "tiny.yaml", STAGE_CONFIGS) for n in "ab"]
    observer = Failing("gfpo", 4, OSError("the disk went away"))
    summary = staged.run_staged(folders[0].path, observer)
    assert observer.begun == [("sft", 0), ("gfpo", 0), ("gfpo", 3)]
    assert [step for label, step in observer.steps if label == "gfpo"] == [1, 2, 3, 4, 4, 5]
    run = folders[0]
    assert checkpoints_in(run.stage_dir(1))[0][0] == 5
    undisturbed = run_plain(folders[1].path, Observer())
    contents = [[folder.result(index)["content"] for index in (0, 1)] for folder in folders]
    assert contents[0] == contents[1] and summary["accuracy_end"] == undisturbed["accuracy_end"]
    loss = [metric_history(folder.stage_dir(1) / "journal.jsonl")["reward/mean"] for folder in folders]
    assert loss[0] == loss[1]
    # the run that tracking was told had failed is told to go on
    told = [e.get("status", e["kind"]) for e in read_events(run.path / "journal.jsonl")[0] if e["kind"] != "metrics"]
    assert [word for word in told if word in ("start", "FAILED", "FINISHED")] == [
        "start",
        "FAILED",
        "start",
        "FINISHED",
    ]
    record = flow_run(run)
    states = api(
        "/task_runs/filter", {"flow_runs": {"id": {"any_": [record["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    )
    message = next(task["state"]["message"] for task in states if task["name"] == "gfpo")
    assert message.endswith("resumed after step 3")
    assert json.loads(artifacts(record["id"])["a-stages"]["data"])[1]["note"] == "resumed after step 3"
