"""Correct completions that a stage wrote while it trained, kept for a later stage to learn from as demonstrations.

One line of JSON each, in a file of the stage's folder, in the order of the steps. A line has a checksum of its own, and
a resumed stage cuts the file back to the steps before the one that it trains first.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sha256, sync_folder

if TYPE_CHECKING:
    from gradus.pipeline.tasks.data import TaskData
    from gradus.pipeline.types import Rollouts

COMPLETIONS_FILE = "completions.jsonl"
"""The name of the file, in a stage's folder."""


class KeptCompletions:
    """The file of a stage that trains; ``writes``: whether this process, and rank, keeps anything."""

    def __init__(self, path: Path, writes: bool):
        self.path, self.writes = path, writes
        self._waiting = b""
        """What a full disk has refused so far."""
        self._begun = False

    def add(self, rollouts: Rollouts, step: int) -> None:
        """Keep the correct completions of the batch that this step has trained on, those that were cut off apart."""
        if not self.writes or rollouts.correct_PK is None:
            return
        if not self._begun:
            self._cut(step)
        whole = (rollouts.correct_PK & ~rollouts.truncated_PK).tolist()
        for prompt, texts, correct in zip(rollouts.prompts, rollouts.texts, whole, strict=True):
            for text in dict.fromkeys(text for text, right in zip(texts, correct, strict=True) if right):
                self._waiting += _line({"id": prompt.id, "task": prompt.task, "step": step, "text": text})
        with contextlib.suppress(OSError):
            self.sync(durably=False)

    def sync(self, durably: bool = True) -> None:
        """Write what waits; ``durably``: so that it survives a failure of the machine. Raises: OSError."""
        if not self.writes or not (self._waiting or self.path.exists()):
            return
        with self.path.open("ab") as file:
            begin = file.tell()
            try:
                file.write(self._waiting)
                file.flush()
            except OSError:
                file.truncate(begin)
                raise
            self._waiting = b""
            if durably:
                os.fsync(file.fileno())
        if durably:
            sync_folder(self.path.parent)

    def finish(self) -> str:
        """Make everything durable, and return the hash of the file; empty where there is none. Raises: OSError."""
        self.sync()
        return sha256(self.path) if self.path.exists() else ""

    def _cut(self, step: int) -> None:
        """Forget what an earlier launch kept of this step and of those after it, and what a kill left half-written."""
        self._begun = True
        if self.path.exists():
            whole = [raw for raw, line in _lines(self.path) if line is not None and line["step"] < step]
            with self.path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))


def taught(task: TaskData, file: Path, per_prompt: int, where: str) -> TaskData:
    """The task's training prompts that the file has completions of, with the newest ``per_prompt`` of each as their
    demonstrations. ``where``: the option that asks for it. Raises: UserError where there are none.
    """
    import pyarrow
    from datasets import Dataset

    found: dict[str, dict[str, None]] = {}
    for _, line in _lines(file):
        if line is not None and line["task"] == task.name:
            texts = found.setdefault(line["id"], {})
            texts.pop(line["text"], None)  # the newest of equal ones counts
            texts[line["text"]] = None
    rows, shown = list[int](), list[str]()
    for row, name in enumerate(task.train["id"]):
        newest = list(found.get(name, ()))[-per_prompt:]
        rows += [row] * len(newest)
        shown += newest
    if not rows:
        raise UserError(
            f"no training prompt{f' of the task {task.name}' if task.name else ''} was answered correctly",
            where=where,
            got=f"{len(found):,} prompts with correct completions in {file}",
            expected="correct completions to learn from",
            fix="name a stage that solves some prompts, or one that trained on this task",
        )
    table: Any = task.train.with_format("arrow")[:]
    table = table.take(rows)
    column = table.column_names.index("demonstration")
    table = table.set_column(column, "demonstration", pyarrow.array(shown, pyarrow.string()))
    return replace(task, train=Dataset(table), has_demonstrations=True)


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content).encode()
    return json.dumps({**content, "check": zlib.crc32(text)}).encode() + b"\n"


def _lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its content; None, and no further line, where it is not as it was written."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        for raw in stream:
            try:
                content = json.loads(raw)
                check = content.pop("check")
                intact = raw.endswith(b"\n") and check == zlib.crc32(json.dumps(content).encode())
            except (ValueError, KeyError, AttributeError):
                intact, content = False, None
            yield raw, content if intact else None
            if not intact:
                return
