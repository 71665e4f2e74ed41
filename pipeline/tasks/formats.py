"""What a row of a table contains: the formats that data sets have, told apart on their first rows.

A format is read by one function, from a row to what it asks and shows. Everything else about a prompt (ids, duplicates,
splits) is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.task import Columns, TableOptions
from gradus.pipeline.tasks.conversations import content_of, text_of, tools_of, turns_of
from gradus.pipeline.types import Turn, with_system

Row = Mapping[str, Any]

QUESTIONS = ("question", "prompt", "problem", "query")
ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "expected_answer", "final_answer", "solution")
DEMONSTRATIONS = ("demonstration", "completion", "response")
CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
"""The usual names of columns, tried in this order where the configuration names none."""
USUAL = {
    "alpaca": ("instruction",),
    "messages": CONVERSATIONS,
    "sharegpt": CONVERSATIONS[::-1],
    "preference": (*QUESTIONS, "instruction", "chosen"),
}
"""format -> the usual names of its question's column, where they are not ``QUESTIONS``."""
SHOWN = {
    "messages": "the last assistant turn",
    "sharegpt": "the last assistant turn",
    "alpaca": "output",
    "preference": "chosen",
}
"""format that contains a demonstration -> what that is."""


@dataclass(frozen=True)
class Asked:
    """What a row contains."""

    turns: list[Turn]
    """The conversation up to the completion; empty where the row has none."""
    demonstration: str = ""
    rejected: str = ""
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Form:
    """How the rows of a table become prompts."""

    format: str
    """One of ``task.format``, never ``auto``."""
    question: str
    """The column of the problem or the conversation."""
    answer: str | None = None
    """The column of the reference answer; None: there is none, or the demonstration is it."""
    demonstration: str | None = None
    """The column of the demonstration, where the format does not contain it."""
    answered: bool = True
    """Whether a row needs an answer."""
    system: str | None = None
    """The column of a system turn."""

    def read(self, row: Row) -> tuple[Asked, list[str]] | None:
        """What a row asks and its right answers; None where something is missing. Raises: Unfit."""
        asked = READERS[self.format](self, row)
        if self.demonstration is not None:
            shown = content_of(at(row, self.demonstration), self.demonstration, "demonstration")
            asked = replace(asked, demonstration=shown)
        if self.answer is None:
            answers = [asked.demonstration] if asked.demonstration else []
        else:
            answers = self._answers(at(row, self.answer))
        if not asked.turns or (self.answered and not answers) or (self.format == "preference" and not asked.rejected):
            return None
        if self.system is not None:
            said = text_of(row.get(self.system), self.system, "question")
            asked = replace(asked, turns=list(with_system(asked.turns, said or None)))
        return asked, answers

    def _answers(self, value: Any) -> list[str]:
        values = value if isinstance(value, list | tuple) else [value]
        texts = [text_of(each, self.answer or "", "answer") for each in values]
        return texts if len(texts) == 1 and texts[0] else list(dict.fromkeys(filter(None, texts)))

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that a prompt's metadata does not repeat."""
        contained = {"alpaca": ("input", "output"), "preference": ("chosen", "rejected")}.get(self.format, ())
        named = (self.question, self.answer, self.demonstration, self.system, *contained)
        return frozenset(name for name in named if name)

    def is_news(self, options: TableOptions) -> bool:
        """Whether anything was found that the configuration does not say."""
        told = ("prompt", options.columns.question, options.columns.answer)
        found = self.demonstration is not None and self.demonstration != options.columns.demonstration
        return (self.format, self.question, self.answer) != told or found

    def told(self, options: TableOptions) -> str:
        """What was found, in one line."""
        shown = self.demonstration or SHOWN.get(self.format)
        shown = None if self.answer and options.demonstrations == "none" else shown
        answer = self.answer or ("the demonstration" if shown and self.answered else None)
        roles = {"question": self.question, "answer": answer, "demonstration": shown, "system turn": self.system}
        return f"format {self.format} (" + ", ".join(f"{role}: {name}" for role, name in roles.items() if name) + ")"


@dataclass(frozen=True)
class _Head:
    """The first rows of a table, and which columns are in them."""

    rows: Sequence[Row]
    source: str
    strict: bool

    def has(self, path: str) -> bool:
        return any(path in row or at(row, path) is not None for row in self.rows)

    def first(self, paths: Sequence[str]) -> str | None:
        return next((path for path in paths if self.has(path)), None)

    def named(self, path: str, role: str) -> str:
        """The column that the configuration names. Raises: UserError where it is not there."""
        if self.strict and not self.has(path):
            raise UserError(
                f"{self.source} has no column {path!r}",
                where=f"task.columns.{role}",
                got=path,
                expected=f"one of its columns: {self.listed}",
                fix=f"set task.columns.{role} to the column that holds it",
            )
        return path

    @property
    def listed(self) -> str:
        """The columns, those in a group by their path."""
        named = ((name, value) for row in self.rows for name, value in row.items())
        paths = (
            f"{name}.{inner}" if inner else name
            for name, value in named
            for inner in (value if isinstance(value, dict) and value else ("",))
        )
        return ", ".join(dict.fromkeys(paths))


def form_of(rows: Sequence[Row], options: TableOptions, source: str, held: bool = False, strict: bool = True) -> Form:
    """How these first rows of a table are read. ``held``: they are held out, and need no demonstrations.

    With ``strict=False`` a column that does not occur in them is taken to occur later. Raises: UserError.
    """
    columns, head = options.columns, _Head(rows, source, strict)
    kind = _format(head, columns) if options.format == "auto" else options.format
    question = columns.question
    if question == Columns().question:
        question = head.first(USUAL.get(kind, QUESTIONS)) or question
    answer = head.first(ANSWERS) if columns.answer == Columns().answer else columns.answer
    demonstration, contained = columns.demonstration, kind in SHOWN
    wanted = options.demonstrations == "column" and not held
    if demonstration is not None and (wanted or not head.has(demonstration)):
        demonstration = head.named(demonstration, "demonstration") if wanted else None
    elif demonstration is None and not contained and (wanted or (answer is None and columns.answer)):
        demonstration = head.first(DEMONSTRATIONS)
        if demonstration is None and wanted and strict:
            raise UserError(
                "no column of demonstrations is named",
                where="task.columns.demonstration",
                got="null",
                expected=f"the column of worked solutions, one of those of {source}: {head.listed}",
                fix="set task.columns.demonstration, or task.demonstrations to none",
            )
    if answer is None and not contained and demonstration is None:
        answer = columns.answer
    return Form(
        kind,
        head.named(question, "question"),
        answer and head.named(answer, "answer"),
        demonstration,
        answered=columns.answer is not None,
        system=head.first(SYSTEMS) if contained else None,
    )


def _format(head: _Head, columns: Columns) -> str:
    """The format of these rows."""
    if head.has("chosen") and head.has("rejected") and not head.has(columns.answer or "answer"):
        return "preference"
    column = head.first((columns.question, *CONVERSATIONS))
    if column is None and head.has("instruction") and head.has("output"):
        return "alpaca"
    column = column or head.first(QUESTIONS) or ""
    found = (at(row, column) for row in head.rows)
    turns = next((value for value in found if isinstance(value, list | tuple) and value), None)
    if turns is None:
        return "messages" if column in CONVERSATIONS else "prompt"
    if isinstance(turns[0], dict) and "from" in turns[0]:
        return "sharegpt"
    ended = isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    return "messages" if ended or column in CONVERSATIONS else "prompt"


def at(row: Row, path: str) -> Any:
    """The value of a column, or of a nested one by its path; None where there is none.

    >>> at({"reward_model": {"ground_truth": "72"}, "a.b": 1}, "reward_model.ground_truth")
    '72'
    """
    if path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    inner = row.get(head)
    return at(inner, rest) if dot and isinstance(inner, dict) else None


def _prompt(form: Form, row: Row) -> Asked:
    value = at(row, form.question)
    if isinstance(value, list | tuple):
        return Asked(turns_of(value, form.question), tools=tools_of(row))
    text = text_of(value, form.question, "question")
    return Asked([{"role": "user", "content": text}] if text else [])


def _conversation(form: Form, row: Row) -> Asked:
    turns = turns_of(at(row, form.question), form.question)
    if turns and turns[-1]["role"] == "assistant":
        return Asked(turns[:-1], demonstration=turns[-1]["content"], tools=tools_of(row))
    return Asked(turns, tools=tools_of(row))


def _alpaca(form: Form, row: Row) -> Asked:
    asked, given = (text_of(at(row, name), name, "question") for name in (form.question, "input"))
    text = f"{asked}\n\n{given}" if asked and given else asked
    shown = text_of(row.get("output"), "output", "demonstration")
    return Asked([{"role": "user", "content": text}] if text else [], demonstration=shown)


def _preference(form: Form, row: Row) -> Asked:
    contexts = [_prompt(form, row).turns] if form.question != "chosen" else [[]]
    completions = []
    for name in ("chosen", "rejected"):
        value = row.get(name)
        if isinstance(value, list | tuple) and value:
            turns = turns_of(value, name)
            contexts.append(turns[:-1])
            value = turns[-1]["content"]
        completions.append(text_of(value, name, "demonstration"))
    chosen, rejected = completions
    longest = max(contexts, key=len)  # the whole conversation, where the prompt is its first turn alone
    return Asked(longest, chosen, rejected if chosen else "", tools_of(row))


READERS: dict[str, Callable[[Form, Row], Asked]] = {
    "prompt": _prompt,
    "messages": _conversation,
    "sharegpt": _conversation,
    "alpaca": _alpaca,
    "preference": _preference,
}
