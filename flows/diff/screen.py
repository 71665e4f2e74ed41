"""A difference between two policies in the terminal. Whatever a model or a data set wrote is shown as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradus.flows.screen.text import Lines, count, interval_text, number
from gradus.pipeline.common.shown import visible
from gradus.pipeline.tasks.prompts.answers import Answer

LONGEST = 600
"""Characters of a question or an answer that are shown."""
LONGEST_VALUE = 200
"""Characters of an option's value that are shown."""
SIDES = (("a", "A"), ("b", "B"))
ONLY = (("only_a", "A", "B"), ("only_b", "B", "A"))


def print_diff(found: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`gradus.flows.diff.diff.diff` found."""
    say = Lines(console).say
    for side, mark in SIDES:
        state = found[side]
        say(f"{mark}: {state['name']}, held-out accuracy {number(state['accuracy'])} at step {count(state['step'])}")
    for note in found["notes"]:
        say(f"({note})")
    say("")
    if found["options"]:
        console.print(_table(option_header(), option_rows(found), console))
    else:
        say("No option differs.\n")
    say(f"Held-out accuracy on the {count(found['prompts']['both'])} prompts of both:")
    right = set(accuracy_header(found)) - {"task"}
    console.print(_table(accuracy_header(found), accuracy_rows(found), console, right))
    if note := accuracy_note(found):
        say(f"{note}\n")
    for key, one, other in ONLY:
        part = found[key]
        say(only_text(part, one, other))
        if part["prompts"]:
            console.print(_prompts(part["prompts"], one, console))


def option_header() -> list[str]:
    """The head of the table of options."""
    return ["option", "A", "B"]


def option_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each option that differs; ``(how)`` marks those that decide only how something is computed."""
    rows = []
    for row in found["options"]:
        mark = "" if row["decides"] else " (how)"
        rows.append([row["option"] + mark, *(value_text(row[side]) for side, _ in SIDES)])
    return rows


def accuracy_header(found: Mapping[str, Any]) -> list[str]:
    """The head of the table of accuracies; with one task it goes without saying which."""
    head = ["task", "prompts"] if len(found["accuracies"]) > 1 else ["prompts"]
    return [*head, "A", "B", "B - A", "95 % interval", "only A", "only B", "p"]


def accuracy_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each task."""
    rows = []
    for row in found["accuracies"]:
        cells = {
            "task": row["task"] or "all",
            "prompts": count(row["prompts"]),
            "A": number(row["a"]),
            "B": number(row["b"]),
            "B - A": f"{row['difference']:+.3f}",
            "95 % interval": interval_text(row["interval"]),
            "only A": count(row["only_a"]),
            "only B": count(row["only_b"]),
            "p": p_text(row.get("p_holm", row["p"])),
        }
        rows.append([cells[name] for name in accuracy_header(found)])
    return rows


def accuracy_note(found: Mapping[str, Any]) -> str:
    """What is to be said of the p-values of several tasks; empty of one."""
    return "The p of each task is corrected by Holm." if len(found["accuracies"]) > 1 else ""


def only_text(part: Mapping[str, Any], one: str, other: str) -> str:
    """How many prompts one side alone answers, and how many of them are shown."""
    total, shown = part["count"], len(part["prompts"])
    what = f"{one} answers {count(total)} prompt{'' if total == 1 else 's'} that {other} does not"
    return f"{what}; the first {count(shown)}:" if 0 < shown < total else f"{what}{':' if shown else '.'}"


def value_text(value: Any) -> str:
    """An option's value as YAML would nearly have it; a stage that one side lacks is told in a few words.

    >>> value_text({"stage": "sft", "name": "sft", "variant": "manual", "steps": 4, "lr": 0.1}), value_text(None)
    ('a stage: sft, manual, 4 steps', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, Mapping) and "stage" in value:
        steps = value.get("steps")
        parts = [value["stage"], value.get("variant"), f"{steps} step{'' if steps == 1 else 's'}" if steps else None]
        return "a stage: " + ", ".join(filter(None, parts))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def p_text(p: float) -> str:
    """A p-value with three digits, or how small it is.

    >>> p_text(0.0412), p_text(0.00001)
    ('0.041', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def prompt_rows(prompt: Mapping[str, Any], right: str) -> list[tuple[str, str]]:
    """(what, text) of a prompt: its id, the question, the right answer, and what both said."""
    question = prompt["question"] if prompt["question"] is not None else "(the run's data are gone)"
    rows = [(prompt["id"], question), *([("task", prompt["task"])] if prompt["task"] else [])]
    rows.append(("answer", prompt["answer"] or ""))
    for side, mark in SIDES:
        said = prompt[side] if prompt[side] is not None else "(not stored)"
        rows.append((f"{mark}, {'right' if mark == right else 'wrong'}", said))
    return rows


def _prompts(prompts: Sequence[Mapping[str, Any]], right: str, console: Console) -> Table:
    """One table with a section for each prompt."""
    table = Table(box=SIMPLE_HEAD, show_header=False, padding=(0, 1), width=min(console.width, 100))
    table.add_column(width=16, overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for prompt in prompts:
        for what, text in prompt_rows(prompt, right):
            style = {f"{right}, right": "green"}.get(what, "red" if what.endswith(", wrong") else "")
            short = Answer(False, text).shortened(LONGEST).shown()
            table.add_row(Text(visible(what), style or "bold" if text else style), Text(visible(short).strip(), style))
        table.add_section()
    return table


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console, right: Any = ()) -> Table:
    """A table whose cells wrap where the terminal is narrow; those that are numbers stay whole."""
    table = Table(box=SIMPLE_HEAD, padding=0 if right else (0, 1, 0, 0), header_style="bold")
    for name in header:
        numeric = name in right
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table
