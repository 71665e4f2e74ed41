"""Prompts from tables: what can be told from their first rows, and all of them in batches of columns.

A table comes in parts, which are some of its rows with the name of their source and the number of the first of them,
so that every message can name the row it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.task import FileTask, TableOptions
from gradus.pipeline.tasks.conversations import Unfit
from gradus.pipeline.tasks.files import count_rows, files_of, rows_of, rows_with
from gradus.pipeline.tasks.formats import Asked, Form, at, form_of
from gradus.pipeline.tasks.metadata import Batch, encode, packed
from gradus.pipeline.types import transcript

Part = tuple[str, int, list[dict[str, Any]]]
"""(name of the source, number of the first row from 1, rows)."""


@dataclass
class Found:
    """What a check of a task found in the first rows."""

    notes: list[str] = field(default_factory=list)
    """Lines for the user."""
    questions: list[str] = field(default_factory=list)
    """The questions, each once."""


def check_files(task: FileTask, base_dir: Path, where: str, rows: int, found: Found) -> None:
    """Check that the files can be read, have ``rows`` rows, and begin with rows that become prompts.

    Reads no more than needed. Raises: UserError.
    """
    held = where == "task.heldout_path"
    files = files_of((task.heldout_path if held else task.path) or [], base_dir, where)
    first, count = next(_parts(files, where, found.notes), None), 0
    for file in files:
        count += count_rows(file, where, max(rows - count, 1))
    name = files[0].name if len(files) == 1 else f"{len(files)} files"
    if first is None or count < rows:
        raise UserError(
            f"{name} has too few rows" if len(files) == 1 else "the files have too few rows",
            where=where,
            got=f"{count} rows",
            expected=f"at least {rows}, for task.heldout, task.validation and training",
            fix="lower task.heldout or task.validation, or bring more rows",
        )
    check_head(first, task, where, held, found, _form(files, first, task, where, held))


def check_head(head: Part, task: TableOptions, where: str, held: bool, found: Found, form: Form) -> None:
    """Check that the first rows of a table become prompts. Raises: UserError."""
    from gradus.pipeline.tasks.splits import distinct

    notes: list[str] = []
    table = distinct(normalised([head], task, held, notes, form), notes)
    source, size = head[0], len(head[2])
    if table.num_rows == 0:
        raise UserError(
            f"none of the first {size} rows of {source} is a prompt",
            where=where,
            got="; ".join(notes),
            expected="rows with a question and an answer",
            fix="set task.columns to the columns that hold them, or task.columns.answer to null where none is needed",
        )
    found.notes += [note if note.startswith(source) else f"in the first {size} rows: {note}" for note in notes]
    found.questions += table["question"].to_pylist()


def read_files(task: FileTask, base_dir: Path, where: str, notes: list[str]) -> Iterator[Batch]:
    """The rows of all files, in order. Raises: UserError where one cannot be read."""
    held = where == "task.heldout_path"
    files = files_of((task.heldout_path if held else task.path) or [], base_dir, where)
    return normalised(_parts(files, where, notes), task, held, notes)


def numbered(source: str, batches: Iterable[list[dict[str, Any]]]) -> Iterator[Part]:
    """The rows of one source as parts."""
    number = 1
    for rows in batches:
        yield source, number, rows
        number += len(rows)


def normalised(
    parts: Iterable[Part], options: TableOptions, held: bool, notes: list[str], form: Form | None = None
) -> Iterator[Batch]:
    """Batches with the columns question, answer, metadata (JSON of all other columns), demonstration and more.

    Rows without a question or an answer are left out, and ``notes`` gets their number.
    Raises: UserError where a value is neither text nor a number.
    """
    seen: dict[str, int] = {}
    dropped: dict[str, int] = {}
    unusable: dict[str, int] = {}
    for source, number, rows in parts:
        if not seen:
            form = form or form_of(rows, options, source, held, strict=False)
            if form.is_news(options):
                notes.append(f"{source}: {form.told(options)}")
        assert form is not None
        columns: Batch = {name: [] for name in ("question", "answer", "metadata", "demonstration", "more")}
        others = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in form.columns]
        for row, values in enumerate(rows, start=number):
            read = _read(form, values, source, row)
            if read is None:
                dropped[source] = dropped.get(source, 0) + 1
                continue
            asked, answers = read
            simple = len(asked.turns) == 1 and len(asked.turns[0]) == 2 and asked.turns[0]["role"] == "user"
            columns["question"].append(asked.turns[0]["content"] if simple else transcript(asked.turns, system=False))
            columns["answer"].append(answers[0] if answers else "")
            columns["metadata"].append(_metadata({name: values.get(name) for name in others}, unusable))
            columns["demonstration"].append(asked.demonstration or None)
            turns = () if simple else asked.turns
            more = packed(turns=turns, tools=asked.tools, alternatives=answers[1:], rejected=asked.rejected)
            columns["more"].append(more)
        seen[source] = seen.get(source, 0) + len(rows)
        yield columns
    for source, count in dropped.items():
        notes.append(f"{count} of {seen[source]} rows of {source} left out: no question or no answer")
    for name, count in unusable.items():
        notes.append(f"column {name!r} left out in {count} rows: it holds what cannot be stored as text")


def _read(form: Form, values: dict[str, Any], source: str, row: int) -> tuple[Asked, list[str]] | None:
    try:
        return form.read(values)
    except Unfit as error:
        role = error.role if error.column in (form.question, form.answer, form.demonstration) else None
        raise UserError(
            f"{source}, row {row}: column {error.column!r} holds no {error.holds}",
            where=f"task.columns.{role}" if role else "task.format",
            got=ascii(error.value)[:80],
            expected=error.expected,
            fix=f"set task.columns.{role} to a column of that kind, or correct the row" if role else "correct the row",
        ) from error


def _metadata(values: dict[str, Any], unusable: dict[str, int]) -> str:
    """The other columns as JSON, without those that cannot be stored, which are counted."""
    try:
        return encode(values)
    except (TypeError, ValueError, RecursionError):
        kept = {}
    for name, value in values.items():
        try:
            encode({name: value})
            kept[name] = value
        except (TypeError, ValueError, RecursionError):
            unusable[name] = unusable.get(name, 0) + 1
    return encode(kept)


def _parts(files: list[Path], where: str, notes: list[str]) -> Iterator[Part]:
    return chain.from_iterable(numbered(file.name, rows_of(file, where, notes)) for file in files)


def _form(files: list[Path], first: Part, task: FileTask, where: str, held: bool) -> Form:
    """How the rows are read; a column that the first of them lack is looked for in all others. Raises: UserError."""
    rows = [*first[2]]
    while True:
        try:
            return form_of(rows, task, first[0], held)
        except UserError as error:
            later = (row for file in files for row in rows_with(file, where, str(error.got)))
            row = next((row for row in later if at(row, str(error.got)) is not None), None)
            if row is None:
                raise
            rows.append(row)
