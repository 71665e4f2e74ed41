"""The interface through which a run reports its progress: to a terminal, to an orchestrator, or to nobody."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any


class Observer:
    """Receives reports of progress. Override what you need; a method must return quickly and never raise."""

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        """The data and the starting policy are ready; its held-out accuracy with a 95 % interval, if any."""

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        """Stage ``index`` (from 0) of ``total`` starts, or is resumed after ``done`` of its ``steps``."""

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """``step`` (from 1) of ``steps`` is done, with the metrics that are logged."""

    def rule_acted(self, label: str, event: Mapping[str, Any]) -> None:
        """A rule has ended a stage, or rolled it back: ``step``, ``rule``, ``action`` and ``reason``."""

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        """A stage is done; ``result`` is its entry in the run's summary."""

    def note(self, text: str) -> None:
        """A line for the user."""


class Observers(Observer):
    """Several observers as one. Reports of several threads, of stages side by side, come one after the other."""

    def __init__(self, *members: Observer):
        self.members = members
        self._one = threading.RLock()

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        with self._one:
            for member in self.members:
                member.prepared(accuracy, interval)

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        with self._one:
            for member in self.members:
                member.stage_started(label, index, total, steps, done)

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        with self._one:
            for member in self.members:
                member.step_done(label, step, steps, metrics)

    def rule_acted(self, label: str, event: Mapping[str, Any]) -> None:
        with self._one:
            for member in self.members:
                member.rule_acted(label, event)

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        with self._one:
            for member in self.members:
                member.stage_finished(label, result)

    def note(self, text: str) -> None:
        with self._one:
            for member in self.members:
                member.note(text)
