"""Decides which prompts come next: all of them in the order of a stream, or only those that are not solved yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gradus.pipeline.tasks.metadata import decode, unpacked
from gradus.pipeline.tasks.prompts.memory import PromptMemory, key_of
from gradus.pipeline.tasks.splits import COLUMNS, MORE
from gradus.pipeline.types import Prompt, Rollouts, State

if TYPE_CHECKING:
    from datasets import Dataset


class PromptStream:
    """The order of the training prompts in a stage: a new permutation for each epoch, without replacement.

    The prompt at a place is a pure function of (seed, stage, place), so a resumed stage needs only its place.
    """

    def __init__(self, dataset: Dataset, seed: int, stage_label: str, given: Mapping[str, Any] | None = None):
        """``given``: what every prompt of the stream is given beside its row; see :class:`TaskData`."""
        self.dataset, self.seed, self.given = dataset, seed, given or {}
        self.task: str = self.given.get("task", "")
        self.stage_label = f"{stage_label}:{self.task}" if self.task else stage_label
        self._epoch: tuple[int, Any] = (-1, None)

    def at(self, begin: int, size: int) -> list[Prompt]:
        """``size`` prompts from the place ``begin`` (from 0) on, across the ends of epochs."""
        count = len(self.dataset)
        positions = (divmod(begin + offset, count) for offset in range(size))
        return self.rows([self.permutation(epoch)[place] for epoch, place in positions])

    def rows(self, indices: Iterable[int]) -> list[Prompt]:
        """The prompts in these rows of the data set."""
        return read_prompts(self.dataset, indices, self.given)

    def permutation(self, epoch: int) -> Any:
        """Row numbers in the order of this epoch. The raw bits are used because their stream will never change."""
        import numpy

        if self._epoch[0] != epoch:
            digest = hashlib.sha256(f"{self.seed}\0{self.stage_label}\0{epoch}".encode()).digest()
            bits = numpy.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw(len(self.dataset))
            self._epoch = (epoch, numpy.argsort(bits, kind="stable"))
        return self._epoch[1]


class Schedule:
    """Visits every prompt once per epoch, in another order each time."""

    def __init__(self, stream: PromptStream):
        self.stream, self.place = stream, 0

    def take(self, size: int) -> list[Prompt]:
        """The next prompts."""
        self.place += size
        return self.stream.at(self.place - size, size)

    def begin(self, step: int) -> None:
        """The prompts of this step are taken next."""

    def met(self, rollouts: Rollouts) -> None:
        """Take note of the scored completions of prompts that were taken."""

    @property
    def metrics(self) -> dict[str, float]:
        """Progress metrics of the current epoch."""
        return {}

    def state(self) -> State:
        """The state that :meth:`restore` takes."""
        return {"place": self.place}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self.place = state["place"]


class HistoryResampling(Schedule):
    """Visits in each epoch only prompts that were not solved before.

    A prompt is solved, and no longer visited, when all its completions are correct. A prompt with some or only wrong
    completions is visited again, because the policy may still learn to solve it. Prompts are identified by their ids,
    so the history stays valid when rows are added or moved. Completions that could not be scored are ignored. What was
    solved is read from the stage's memory, so that the state says no more than where in it an epoch began.
    Edge: once every prompt is solved, all are visited again.
    Source: SRPO (arXiv 2504.14286), history resampling.
    """

    def __init__(self, stream: PromptStream, memory: PromptMemory):
        super().__init__(stream)
        self.memory, self.epoch = memory, 0
        self.since, self.begun = memory.count, memory.count
        """How many records there were when all prompts were last visited anew, and when this epoch began."""
        self.known: tuple[list[str], list[str]] = ([], [])
        """What a checkpoint of an earlier version says was solved before its epoch, and in it."""
        self._keys: list[int] = [key_of(name) for name in stream.dataset["id"]]
        self._all = set(self._keys)
        self._find()

    def take(self, size: int) -> list[Prompt]:
        rows: list[int] = []
        while len(rows) < size:
            if self.place == len(self._order):
                self._next_epoch()
            more = self._order[self.place : self.place + size - len(rows)]
            rows += more
            self.place += len(more)
        return self.stream.rows(rows)

    def met(self, rollouts: Rollouts) -> None:
        self.solved |= self._own(self.memory.solved(self.memory.count - len(rollouts.prompts), self.memory.count))

    @property
    def metrics(self) -> dict[str, float]:
        return {"prompts/epoch": float(self.epoch), "prompts/left": float(len(self.left | self.solved))}

    def state(self) -> State:
        counts = {"since": self.since, "begun": self.begun}
        lists = {name: ids for name, ids in zip(("left", "solved"), self.known, strict=True) if ids}
        return {"place": self.place, "epoch": self.epoch, **counts, **lists}

    def restore(self, state: State) -> None:
        super().restore(state)
        self.epoch, self.known = state["epoch"], (state.get("left", []), state.get("solved", []))
        self.since, self.begun = state.get("since", 0), state.get("begun", 0)
        self._find()

    def _next_epoch(self) -> None:
        self.epoch, self.place, self.begun = self.epoch + 1, 0, self.memory.count
        self.known = (sorted({*self.known[0], *self.known[1]}), [])
        if (self.left | self.solved).issuperset(self._keys):
            self.since, self.known = self.begun, ([], [])
        self._find()

    def _find(self) -> None:
        """Read from the memory what was solved before this epoch and in it, and put the rest in order."""
        before, within = (self._own(map(key_of, ids)) for ids in self.known)
        self.left = before | self._own(self.memory.solved(self.since, self.begun))
        """Keys of the prompts that were solved before this epoch."""
        self.solved = within | self._own(self.memory.solved(self.begun, self.memory.count))
        """Keys of the prompts that were solved in this epoch."""
        self._order = self._of_epoch()

    def _own(self, keys: Iterable[int]) -> set[int]:
        """Those of the keys that are prompts of this schedule, which may share its memory with others."""
        return self._all & set(keys)

    def _of_epoch(self) -> list[int]:
        """Rows in the order of this epoch, without prompts that were solved before it."""
        return [row for row in self.stream.permutation(self.epoch).tolist() if self._keys[row] not in self.left]


def read_prompts(dataset: Dataset, indices: Iterable[int], given: Mapping[str, Any] | None = None) -> list[Prompt]:
    """Rows of a split as prompts, in the order of ``indices``; ``given``: fields that all of them get."""
    rows = dataset[[int(i) for i in indices]]
    columns = [rows[name] for name in COLUMNS if name != MORE]
    more = rows.get(MORE) or [None] * len(columns[0])  # data of an earlier version has no such column
    return [
        Prompt(i, q, a, decode(metadata), d, **{**(unpacked(m) if m else {}), **(given or {})})
        for i, q, a, metadata, d, m in zip(*columns, more, strict=True)
    ]
