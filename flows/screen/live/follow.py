"""What has changed in a run since it was last looked at, reported as a launch reports it to its own terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from gradus.flows.screen.live.tail import JournalTail
from gradus.flows.screen.progress import PlainObserver
from gradus.flows.screen.status import STEP_METRIC, Status
from gradus.pipeline.runs.run_folder import RunFolder


class Follows(Protocol):
    """What a follower reports to: an observer that also takes what it need not show at once."""

    def seen(self, label: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None: ...

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None: ...

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None: ...


class FollowedLines(PlainObserver):
    """Plain lines about a run that another process trains."""

    def seen(self, label: str, step: int, metrics: Mapping[str, float]) -> None:
        """Lines show the newest step alone."""

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        self.say(f"{label}: stage {index + 1} of {total} runs" + (f", {done} of {steps} steps done" if steps else ""))
        self.begin(label, done)

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        if "accuracy_after" in result:  # otherwise it has been interrupted, which the status says
            super().stage_finished(label, result)


class Follower:
    """One run that is looked at again and again."""

    def __init__(self, shown: Follows, prefix: str = ""):
        """``prefix``: what stands before the names of stages."""
        self._shown, self._prefix = shown, prefix
        self._states: dict[str, str] = {}
        self._tails: dict[str, JournalTail] = {}

    def look(self, run: RunFolder, status: Status) -> None:
        """Report what is new, by the run's status now."""
        first = not self._states
        for index, entry in enumerate(status["stages"]):
            label = self._prefix + entry["name"]
            state = "done" if "accuracy_after" in entry else entry["state"]
            before, self._states[label] = self._states.get(label), state
            if state == "running":
                self._running(label, run, index, entry, len(status["stages"]))
            elif before != state and not first:
                self._tails.pop(label, None)
                self._shown.stage_finished(label, entry)

    def _running(self, label: str, run: RunFolder, index: int, entry: Mapping[str, Any], total: int) -> None:
        begins = label not in self._tails
        tail = self._tails.setdefault(label, JournalTail(run.stage_dir(index) / "journal.jsonl"))
        found = [event for event in tail.new() if event["kind"] == "metrics"]
        events = [(event["step"], _numbers(event["values"])) for event in found]
        steps = [(step, values) for step, values in events if STEP_METRIC in values]
        if begins:
            done = steps[-1][0] if steps else entry["step"]
            self._shown.stage_started(label, index, total, entry["steps"], done)
        for step, values in events:
            self._shown.seen(label, step, values)
        if steps:
            step, values = steps[-1]
            self._shown.step_done(label, step, entry["steps"], values)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line, which may have been written by anything."""
    return {name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
