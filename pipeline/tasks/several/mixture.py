"""A mixture of tasks: every batch has prompts of each, in fixed shares."""

from __future__ import annotations

from collections.abc import Mapping

from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.types import Prompt, Rollouts, State


class MixedSchedule(Schedule):
    """Takes prompts from the schedules of several tasks, so that what was taken so far has their shares.

    Each next prompt is of the task that is furthest behind its share (the first of those, where several are). So no
    task is ever a whole prompt ahead of or two behind its share, in a batch and over all batches.
    """

    def __init__(self, parts: Mapping[str, Schedule], shares: Mapping[str, float]):
        self.parts, self.shares = dict(parts), dict(shares)
        self.taken = dict.fromkeys(self.parts, 0)
        """name -> prompts so far."""

    def take(self, size: int) -> list[Prompt]:
        slots = [self._next() for _ in range(size)]
        found = {name: iter(part.take(slots.count(name))) for name, part in self.parts.items() if name in slots}
        return [next(found[name]) for name in slots]

    def begin(self, step: int) -> None:
        for part in self.parts.values():
            part.begin(step)

    def _next(self) -> str:
        after = sum(self.taken.values()) + 1
        name = max(self.parts, key=lambda name: self.shares[name] * after - self.taken[name])
        self.taken[name] += 1
        return name

    def met(self, rollouts: Rollouts) -> None:
        for part in self.parts.values():
            part.met(rollouts)

    @property
    def metrics(self) -> dict[str, float]:
        return {f"{key}/{name}": value for name, part in self.parts.items() for key, value in part.metrics.items()}

    def state(self) -> State:
        return {"taken": dict(self.taken), "parts": {name: part.state() for name, part in self.parts.items()}}

    def restore(self, state: State) -> None:
        self.taken = dict(state["taken"])
        for name, part in self.parts.items():
            part.restore(state["parts"][name])
