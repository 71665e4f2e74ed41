"""Made-up rows in the form of a task's columns: sums, with whatever the task's stages and rewards read of them."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradus.pipeline.common.files import write_text
from gradus.pipeline.config import RewardConfig
from gradus.pipeline.config.task import TableOptions
from gradus.pipeline.rewards.user_functions import source_file

USUAL = {"messages": "messages", "sharegpt": "conversations", "alpaca": "instruction", "preference": "prompt"}
"""format -> the column of what is asked, where the task names none."""
EXAMPLE = "EXAMPLE_ANSWER"
"""The name under which the module of a reward says what a reference answer looks like, where no number will do."""


def write_rows(
    folder: Path,
    name: str,
    task: TableOptions,
    given: str,
    rewards: Iterable[RewardConfig],
    numbers: Iterable[str],
    count: int,
) -> dict[str, Any]:
    """Write so many rows for a task, in a file named by what is in it, and give the options of a task that reads them.

    ``given``: what its stages do not sample but take from it: ``demonstrations``, ``pairs`` or nothing; ``numbers``:
    further columns that a stage orders prompts by.
    """
    form = _form(task, given)
    asked = task.columns.question
    question = asked if asked != type(task.columns)().question else USUAL.get(form, asked)
    answer = next(filter(None, map(example_answer, rewards)), None)
    rows = [_row(task, form, question, name, number, answer) for number in range(count)]
    rows = [{**row, **dict.fromkeys(numbers, number)} for number, row in enumerate(rows)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = folder / f"{name or 'task'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        write_text(path, text)
    columns = {**task.columns.model_dump(), "question": question}
    return {"source": "file", "path": str(path), "heldout_path": None, "format": form, "columns": columns}


def example_answer(reward: RewardConfig) -> str | None:
    """What the module of a reward from outside assigns to ``EXAMPLE_ANSWER``; its code is read, and not run."""
    file = source_file(reward.reward)
    for node in ast.parse(file.read_bytes()).body if file is not None else ():
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [
            EXAMPLE
        ]:
            return str(ast.literal_eval(node.value))
    return None


def _form(task: TableOptions, given: str) -> str:
    """The format of the rows: the task's own where it says one, otherwise one that holds what its stages take."""
    if task.format != "auto":
        return task.format
    if given == "pairs":
        return "preference"
    return "messages" if given == "demonstrations" and task.columns.demonstration is None else "prompt"


def _row(task: TableOptions, form: str, asked: str, name: str, number: int, answer: str | None) -> dict[str, Any]:
    first, second = number, number + 1
    question = f"{name or 'task'}: what is {first} + {second}?"
    shown, wrong = (f"{first} + {second} = {total}" for total in (first + second, first + second + 1))
    row: dict[str, Any] = {}
    if task.columns.answer is not None:
        _put(row, task.columns.answer, answer or str(first + second))
    if form in ("messages", "sharegpt"):
        turns = [("user", question), ("assistant", shown)]
        keys = ("role", "content") if form == "messages" else ("from", "value")
        _put(row, asked, [dict(zip(keys, turn, strict=True)) for turn in turns])
    else:
        # Columns of this name often hold turns where they are asked, and text beside a pair.
        as_turns = asked == "prompt" and form == "prompt"
        _put(row, asked, [{"role": "user", "content": question}] if as_turns else question)
    contained = {"alpaca": {"input": "", "output": shown}, "preference": {"chosen": shown, "rejected": wrong}}
    row |= contained.get(form, {})
    if task.columns.demonstration is not None:
        _put(row, task.columns.demonstration, shown)
    return row


def _put(row: dict[str, Any], path: str, value: Any) -> None:
    """Set a column, or a nested one by its path."""
    *outer, last = path.split(".")
    for key in outer:
        row = row.setdefault(key, {})
    row[last] = value
