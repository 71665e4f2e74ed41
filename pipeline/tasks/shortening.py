"""Prompts that are too long for a model: cut from the left, or left out, in a task's folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.data import TaskData
from gradus.pipeline.tasks.metadata import BATCH, packed
from gradus.pipeline.tasks.splits import COLUMNS, MORE, SPLITS, folded, prompt_id
from gradus.pipeline.tasks.task import load_task, rewrite_task
from gradus.pipeline.types import Prompt, transcript

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Changes = dict[str, dict[int, Prompt | None]]
"""split -> row -> the prompt that takes its place, or None where it is left out."""


def long_prompts(task: TaskData, length: int) -> Iterator[tuple[str, int, Prompt]]:
    """(split, row, prompt) of the prompts whose texts have more than so many bytes; no token is less than a byte."""
    from pyarrow.compute import call_function as measured

    for name in SPLITS:
        split = getattr(task, name)
        columns: Any = split.select_columns([c for c in ("question", MORE) if c in split.column_names])
        for start, batch in zip(itertools.count(0, BATCH), columns.with_format("arrow").iter(BATCH), strict=False):
            sizes = measured("binary_length", [batch.column("question")]).to_pylist()
            if MORE in batch.column_names:
                more = measured("binary_length", [batch.column(MORE)]).to_pylist()
                sizes = [max(size, other or 0) for size, other in zip(sizes, more, strict=True)]
            rows = [start + place for place, size in enumerate(sizes) if size > length]
            yield from ((name, row, prompt) for row, prompt in zip(rows, task.prompts(split, rows), strict=True))


def cut(prompt: Prompt, characters: int) -> Prompt | None:
    """The prompt without its first characters; system turns stay, and turns that are cut away are left out.

    None where nothing is left to answer to.

    >>> cut(Prompt("", "What is 1 + 1?", ""), 8).question
    '1 + 1?'
    """
    turns = []
    for turn in replace(prompt, system=None).conversation:
        if turn["role"] != "system":
            text = turn["content"]
            turn, characters = {**turn, "content": text[characters:]}, max(0, characters - len(text))
            answers = turn["role"] != "user" and not any(kept["role"] == "user" for kept in turns)
            if answers or not turn["content"].strip():
                continue
        turns.append(turn)
    if not turns or turns[-1]["role"] == "system":
        return None
    question = transcript(turns, system=False)
    kept = tuple(turns) if prompt.turns else ()
    shorter = replace(prompt, question=question, turns=kept)
    return replace(shorter, id=prompt_id(question, prompt.answer, _more(replace(shorter, system=None))))


def changed(task: TaskData, folder: Path, changes: Changes, note: str) -> TaskData:
    """The task with these prompts changed or left out, which its folder then contains.

    A question that is in two splits when it is cut is left out of training, or of validation.
    Raises: UserError where a split is empty then.
    """
    held: set[str] = set()
    tables = {}
    for name in reversed(SPLITS):
        split, own = getattr(task, name), changes.get(name, {})
        new = {row: prompt for row, prompt in own.items() if prompt and folded(prompt.question) not in held}
        rows = [row for row in range(len(split)) if row not in own or row in new]
        if held:
            asked = dict(enumerate(split["question"]))
            rows = [row for row in rows if row in new or folded(asked[row]) not in held]
        if not rows and len(split):
            fix = "choose a model that takes more tokens, lower sampling.max_tokens, or bring shorter prompts"
            raise UserError(f"every {name} prompt is too long for the model", where="task", got=note, fix=fix)
        tables[name] = _table(split, rows, new)
        if name != "train":
            held |= {folded(prompt.question) for prompt in new.values()}
    rewrite_task(folder, {name: tables[name] for name in SPLITS}, note)
    return replace(load_task(folder, task.name), asked=task.asked)


def _table(split: Dataset, rows: list[int], new: dict[int, Prompt]) -> pyarrow.Table:
    """These rows of a split, some of them with another prompt."""
    import pyarrow

    schema = pyarrow.schema([(column, pyarrow.string()) for column in COLUMNS])
    parts = [schema.empty_table()]
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        batch = split[part]
        columns = {column: list(batch.get(column) or [None] * len(part)) for column in COLUMNS}
        for place, row in enumerate(part):
            if (prompt := new.get(row)) is not None:
                columns["id"][place], columns["question"][place] = prompt.id, prompt.question
                columns[MORE][place] = _more(prompt)
        parts.append(pyarrow.table(columns, schema=schema))
    return pyarrow.concat_tables(parts)


def _more(prompt: Prompt) -> str | None:
    names = ("turns", "tools", "alternatives", "rejected", "system")
    return packed(**{name: getattr(prompt, name) for name in names})
