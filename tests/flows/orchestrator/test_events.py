"""The events that a run sends to Prefect: read back through its API, acted upon by an Automation, and never needed; and
what a browser shows of a flow run."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from benchmarks.browser import chromium, new_tab
from dry_execution import Rehearsal
from flow_runs import LABELS, Listener, api, flow_run, open_run, work

from gradus.flows.orchestrator.password import own_password
from gradus.flows.orchestrator.recorded import flow_record
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.runs.run_folder import RESULT_FILE, RunFolder


class Guarded(Rehearsal):
    """A rehearsal in which the guard acts in gfpo, and another rule in dapo."""

    reason = "accuracy fell from 0.500 to 0.200: back to step 1"

    def run_stage(self, run: RunFolder, index: int, parent: str, stage: Any, observer: Observer) -> dict[str, Any]:
        label = run.config.stages[index].label
        if label in ("dapo", "gfpo") and not run.result(index):
            rule, action = ("guard", "roll back") if label == "gfpo" else ("plateau", "end")
            observer.rule_acted(label, {"step": 2, "rule": rule, "action": action, "reason": self.reason})
        return super().run_stage(run, index, parent, stage, observer)


def sent(run: RunFolder, wanted: int) -> list[dict[str, Any]]:
    """gradus's events of a run, oldest first, once there are that many."""
    resources = [f"gradus.run.{run.name}", *(f"gradus.stage.{run.name}.{label}" for label in LABELS)]
    asked = {"filter": {"event": {"prefix": ["gradus."]}, "resource": {"id": resources}, "order": "ASC"}}
    deadline = time.monotonic() + 60
    while len(found := api("/events/filter", asked)["events"]) < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def related(event: dict[str, Any]) -> dict[str, str]:
    """role -> id of what an event is related to."""
    return {each["prefect.resource.role"]: each["prefect.resource.id"] for each in event["related"]}


def test_stages_the_guard_and_the_end_are_told(staged: Any, tmp_path: Path) -> None:
    run = open_run(tmp_path, "told")
    staged.run_staged(run.path, Observer(), work(run, Guarded()))
    found = sent(run, 6)
    done = "gradus.stage.completed"
    names = [event["event"] for event in found]
    assert names == [done, done, "gradus.guard.acted", done, done, "gradus.run.completed"], "not of other rules"
    record = flow_run(run)
    for event in found:
        links = related(event)
        assert links["flow-run"] == f"prefect.flow-run.{record['id']}" and links["flow"]
        assert {each["prefect.resource.id"] for each in event["related"]} >= {"prefect.tag.gradus", "prefect.tag.tiny"}
        assert event["payload"]["run"] == "told" and event["payload"]["run_dir"] == str(run.path)
    *stages, end = found
    assert all(related(event)["gradus-run"] == "gradus.run.told" and related(event)["task-run"] for event in stages)
    told = stages[1]
    assert told["resource"]["prefect.resource.id"] == "gradus.stage.told.dapo"
    assert told["payload"] | {"host": "", "run_dir": "", "checkpoint": ""} == {
        "run": "told", "stage": "dapo", "message": "told: dapo is done: accuracy 0.200 -> 0.300",
        "algorithm": None, "variant": "manual", "steps": 2, "accuracy_before": 0.2,
        "accuracy_after": pytest.approx(0.3),
        "interval": [0.3, 0.5], "rollouts": 48, "tokens": 12345, "seconds": 1.25, "ended_by": "steps", "tasks": {},
        "fell": [], "host": "", "run_dir": "", "checkpoint": "",
    }  # fmt: skip
    guard = found[2]["payload"]
    assert (guard["stage"], guard["step"], guard["action"], guard["reason"]) == ("gfpo", 2, "roll back", Guarded.reason)
    assert guard["message"] == f"told: gfpo, step 2, roll back: {Guarded.reason}"
    assert end["resource"]["prefect.resource.id"] == "gradus.run.told"
    assert (end["payload"]["accuracy_start"], end["payload"]["accuracy_end"]) == (0.1, 0.5)
    assert [stage["name"] for stage in end["payload"]["stages"]] == LABELS


def test_what_is_repeated_is_told_once(staged: Any, tmp_path: Path) -> None:
    """As after a kill between the end of a stage and its record; and stages that are reused are no news."""
    run = open_run(tmp_path, "repeated")
    staged.run_staged(run.path, Observer(), work(run, Guarded()))
    first = sent(run, 6)
    for index in (2, 3):
        (run.stage_dir(index) / RESULT_FILE).unlink()
    staged.run_staged(run.path, Observer(), work(run, Guarded()))
    time.sleep(3)  # the second flow's events have been sent when it ends, and are stored within a second
    assert [event["id"] for event in sent(run, 6)] == [event["id"] for event in first]
    run.set_aside(3)  # as `gradus resume --from srpo` does
    staged.run_staged(run.path, Observer(), work(run, Guarded()))
    again = sent(run, 8)[6:]
    assert [event["event"] for event in again] == ["gradus.stage.completed", "gradus.run.completed"]


def test_an_event_that_prefect_refuses_costs_the_run_nothing(staged: Any, tmp_path: Path) -> None:
    class Endless(Guarded):
        reason = "no end " * 1_000_000

    run, listener = open_run(tmp_path, "endless"), Listener()
    execution = Endless()
    assert staged.run_staged(run.path, listener, work(run, execution)) == execution.finish(run)
    assert flow_run(run)["state_name"] == "Completed"
    assert "gradus.guard.acted" not in [event["event"] for event in sent(run, 5)]


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a chat's webhook, and what it has received."""
    messages = list[dict[str, Any]]()

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing on standard error."""

    chat = HTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=chat.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{chat.server_port}", messages
    chat.shutdown()


def test_an_automation_notifies_a_chat(staged: Any, tmp_path: Path, received: tuple[str, list[dict[str, Any]]]) -> None:
    """The example of docs/prefect.md, on gradus's own server."""
    from prefect.automations import Automation, EventTrigger
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from gradus.flows.orchestrator.server import ensure_server

    address, messages = received
    with temporary_settings({PREFECT_API_URL: ensure_server(), PREFECT_API_AUTH_STRING: own_password()}):
        hook: Any = Webhook(method="POST", url=address)
        hook.save("training-chat", overwrite=True)
        made: Any = Automation(
            name="tell the chat",
            trigger=EventTrigger(expect={"gradus.guard.acted", "gradus.run.completed"},
                                 posture="Reactive", threshold=1),
            actions=[CallWebhook(block_document_id=hook._block_document_id,
                                 payload='{"text": {{ event.payload.message | tojson }}}')],
        ).create()  # fmt: skip
    try:
        time.sleep(1)  # the server's triggers learn of a new Automation a moment later
        run = open_run(tmp_path, "notified")
        staged.run_staged(run.path, Observer(), work(run, Guarded()))
        deadline = time.monotonic() + 60
        while len(messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert {message["text"] for message in messages} == {
            f"notified: gfpo, step 2, roll back: {Guarded.reason}",
            "notified: the run is complete: accuracy 0.100 -> 0.500",
        }
    finally:
        api(f"/automations/{made.id}", method="DELETE")


LABELLED = (  # the tab of that name
    "Array.from(document.querySelectorAll('*')).filter(e => !e.children.length && e.textContent.trim() == 'Artifacts')"
)
OF_FLOW_RUN = r"(document.body.innerText.split(/\n\s*Flow run\s*\n/)[1] ?? '')"
"""The text below the heading of the flow run's own artifacts."""


@pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")
def test_the_table_of_stages_is_first_on_the_page(staged: Any, tmp_path: Path) -> None:
    """The server has random ids for artifacts, by which its pages order them."""
    run = open_run(tmp_path, "seen")
    staged.run_staged(run.path, Observer(), work(run, Rehearsal()))
    page = flow_record(run.path)["page"]
    with new_tab() as tab:
        tab.open(page.partition("/runs/")[0] + "/robots.txt")
        tab.wait_for("location.pathname == '/robots.txt'")
        password = base64.b64encode(own_password().encode()).decode()
        tab.value(f"localStorage.setItem('prefect-password', {json.dumps(password)})")
        tab.open(page)
        tab.wait_for(f"{LABELLED}.map(tab => tab.click()).length > 0", 120)
        whole = "['4 of 4 stages are done', 'seen-progress-srpo'].every(text => window.shown.includes(text))"
        tab.wait_for(f"(window.shown = {OF_FLOW_RUN}) && {whole}", 120)  # names come first, then what is said of them
        shown = [line.strip() for line in tab.value("window.shown").splitlines() if line.strip()]
    assert shown[:2] == ["TABLE", "seen-stages"], shown
    assert shown.index("Task runs") > shown.index("4 of 4 stages are done")
