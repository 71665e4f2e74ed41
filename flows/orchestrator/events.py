"""Events that a run sends to Prefect, for Automations that notify somebody or start something.

    gradus.stage.completed    a stage is done, freshly and not reused
    gradus.guard.acted        the collapse guard has rolled a stage back, slowed it down or stopped it
    gradus.run.completed      the run is complete

Prefect sends them in a thread of its own; a dead server costs training nothing, and what cannot be sent is dropped. An
event has the same id where it is repeated, after a kill or by a retry, so that the server takes it once.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.shown import shown_share
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import fell

STAGE_COMPLETED, GUARD_ACTED, RUN_COMPLETED = "gradus.stage.completed", "gradus.guard.acted", "gradus.run.completed"
STAGE_KEYS = ("algorithm", "variant", "steps", "accuracy_before", "accuracy_after", "interval", "rollouts", "tokens")
"""What the payload has of a stage's success record, beside what is said of every event."""


class PrefectEvents(Observer):
    """Sends a run's events. It must be used inside the flow run that they belong to: Prefect relates them to it."""

    def __init__(self, run: RunFolder):
        self.run = run

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        tasks = result.get("tasks") or {}
        ended = [event["rule"] for event in result.get("events", ()) if event["action"] != "slower"]
        self._emit(
            STAGE_COMPLETED,
            f"{label} is done: accuracy {_change(result.get('accuracy_before'), result.get('accuracy_after'))}",
            label,
            **{key: result.get(key) for key in (*STAGE_KEYS, "seconds", "checkpoint")},
            ended_by=ended[0] if ended else "steps",
            tasks={name: each["accuracy"] for name, each in tasks.items()},
            fell=fell(tasks),
        )

    def rule_acted(self, label: str, event: Mapping[str, Any]) -> None:
        if event["rule"] == "guard":
            self._emit(
                GUARD_ACTED, f"{label}, step {event['step']}, {event['action']}: {event['reason']}", label, **event
            )

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """The run is complete."""
        start, end = summary.get("accuracy_start"), summary.get("accuracy_end")
        stages = [{key: each.get(key) for key in ("name", "steps", "accuracy_after")} for each in summary["stages"]]
        numbers: dict[str, Any] = {key: summary.get(key) for key in ("accuracy_start", "accuracy_end", "seconds")}
        message = f"the run is complete: accuracy {_change(start, end)}"
        self._emit(RUN_COMPLETED, message, stages=stages, seed=self.run.config.seed, **numbers)

    def _emit(self, event: str, message: str, stage: str = "", **more: Any) -> None:
        """Hand an event to Prefect's thread, whatever is wrong with Prefect. ``stage``: the one that it is about."""
        run = self.run
        named = {"prefect.resource.id": f"gradus.run.{run.name}", "prefect.resource.name": run.name}
        resource = {"prefect.resource.id": f"gradus.stage.{run.name}.{stage}", "prefect.resource.name": stage}
        said = {"run": run.name, "message": f"{run.name}: {message}", "host": socket.gethostname()}
        said |= {"run_dir": str(run.path)} | ({"stage": stage} if stage else {}) | more
        attempts = [len(run.attempts(index)) for index in range(len(run.outline))]
        once = [event, said["host"], said["run_dir"], run.record.get("created"), attempts, stage, more.get("step")]
        with contextlib.suppress(Exception):
            emit_event(
                event,
                resource if stage else named,
                related=[named | {"prefect.resource.role": "gradus-run"}] if stage else [],
                payload=said,
                id=uuid5(NAMESPACE_URL, json.dumps(once)),
            )


def _change(before: float | None, after: float | None) -> str:
    return f"{shown_share(before)} -> {shown_share(after)}"
