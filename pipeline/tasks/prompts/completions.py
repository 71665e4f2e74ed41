"""Completions that a stage wrote while it trained, kept for a later stage to learn from: correct ones as
demonstrations, or pairs of a better and a worse one. One line each, in a file of the stage's folder (``step_lines``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sha256
from gradus.pipeline.tasks.metadata import packed, unpacked
from gradus.pipeline.tasks.prompts.step_lines import StepLines, step_lines
from gradus.pipeline.tasks.splits import MORE

if TYPE_CHECKING:
    from gradus.pipeline.config.prompts import DemonstrationsConfig
    from gradus.pipeline.tasks.data import TaskData
    from gradus.pipeline.types import Rollouts

COMPLETIONS_FILE = "completions.jsonl"
"""The name of the file, in a stage's folder."""


class KeptCompletions(StepLines):
    """The file of a stage that trains; ``keeps``: what this process, and rank, keeps, ``correct`` ones or ``pairs``."""

    def __init__(self, path: Path, keeps: Collection[str]):
        super().__init__(path, bool(keeps))
        self.keeps = keeps

    def add(self, rollouts: Rollouts, step: int) -> None:
        """Keep completions of the batch that this step has trained on, those that were cut off apart."""
        if not self.keeps or rollouts.correct_PK is None:
            return
        self.begin(step)
        if "correct" in self.keeps:
            whole = (rollouts.correct_PK & ~rollouts.truncated_PK).tolist()
            for prompt, texts, correct in zip(rollouts.prompts, rollouts.texts, whole, strict=True):
                for text in dict.fromkeys(text for text, right in zip(texts, correct, strict=True) if right):
                    self.append({"id": prompt.id, "task": prompt.task, "step": step, "text": text})
        for group, (best, worst) in _pairs(rollouts).items() if "pairs" in self.keeps else ():
            prompt, texts = rollouts.prompts[group], rollouts.texts[group]
            given = {"id": prompt.id, "task": prompt.task, "step": step}
            self.append({**given, "text": texts[best], "rejected": texts[worst]})
        self.flush()

    def finish(self) -> str:
        """Make everything durable, and return the hash of the file; empty where there is none. Raises: OSError."""
        self.sync()
        return sha256(self.path) if self.path.exists() else ""


def _pairs(rollouts: Rollouts) -> dict[int, tuple[int, int]]:
    """group -> a completion with the highest reward and one with the lowest, where these differ; the first of each."""
    assert rollouts.rewards_PK is not None
    usable_PK = rollouts.scored_PK & ~rollouts.truncated_PK
    high = rollouts.rewards_PK.where(usable_PK, -float("inf")).max(-1)
    low = rollouts.rewards_PK.where(usable_PK, float("inf")).min(-1)
    found = enumerate(zip(high.indices.tolist(), low.indices.tolist(), strict=True))
    return {group: pair for group, pair in found if high.values[group] > low.values[group]}


def taught(task: TaskData, file: Path, asked: DemonstrationsConfig, where: str) -> TaskData:
    """The task's training prompts that the file has completions of, with the newest ``asked.per_prompt`` of each as
    their demonstrations, or as their pairs. ``where``: the option that asks for it. Raises: UserError where there are
    none.
    """
    import pyarrow
    from datasets import Dataset

    found: dict[str, dict[tuple[str, str], None]] = {}
    for _, line in step_lines(file):
        if line is not None and line["task"] == task.name and ("rejected" in line) == (asked.keep == "pairs"):
            texts, text = found.setdefault(line["id"], {}), (line["text"], line.get("rejected", ""))
            texts.pop(text, None)  # the newest of equal ones counts
            texts[text] = None
    rows, shown = list[int](), list[tuple[str, str]]()
    for row, name in enumerate(task.train["id"]):
        newest = list(found.get(name, ()))[-asked.per_prompt :]
        rows += [row] * len(newest)
        shown += newest
    if not rows:
        raise UserError(
            f"no training prompt{f' of the task {task.name}' if task.name else ''} "
            + ("has a better and a worse completion" if asked.keep == "pairs" else "was answered correctly"),
            where=where,
            got=f"{len(found):,} prompts with such completions in {file}",
            expected="completions to learn from",
            fix="name a stage that solves some prompts, or one that trained on this task",
        )
    table: Any = task.train.with_format("arrow")[:]
    table = table.take(rows)
    changed: dict[str, list[Any]] = {"demonstration": [text for text, _ in shown]}
    if asked.keep == "pairs":
        more = table[MORE].to_pylist() if MORE in table.column_names else [None] * len(rows)
        changed[MORE] = [
            packed(**{**(unpacked(known) if known else {}), "rejected": rejected})
            for known, (_, rejected) in zip(more, shown, strict=True)
        ]
    for name, values in changed.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, pyarrow.array(values, pyarrow.string()))
    return replace(task, train=Dataset(table), has_demonstrations=True)
