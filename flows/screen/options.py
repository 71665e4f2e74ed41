"""Option classes as tables: every option with its type, its default and its description."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradus.pipeline.config.options import Options, fields_of


def describe_options(options: type[BaseModel], without: type[BaseModel] | None = None) -> list[dict[str, str]]:
    """name, type, default and description of each option, except those that ``without`` declares in the same way."""
    rows = []
    for name, field in fields_of(options).items():
        inherited = fields_of(without).get(name) if without else None
        if name == "stage" or (inherited is not None and repr(inherited) == repr(field)):
            continue
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        description = " ".join((field.description or "").replace("``", "`").split())
        rows.append(
            {"name": name, "type": type_in_words(field.annotation), "default": default, "description": description}
        )
    return rows


def type_in_words(annotation: Any) -> str:
    """A type in words for the author of a configuration.

    >>> type_in_words(list[int] | None), type_in_words(Literal["a", "b"])
    ('list of whole number or null', 'a | b')
    """
    words = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true | false",
        type(None): "null",
        Any: "anything",
    }
    if annotation in words:
        return words[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is typing.Annotated:
        return type_in_words(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(type_in_words, arguments))
    if origin is tuple:
        return f"[{', '.join(map(type_in_words, arguments))}]"
    if origin is list:
        return f"list of {type_in_words(arguments[0])}"
    return "group of options"


def _value(value: Any) -> str:
    if isinstance(value, Options):
        return "its own defaults"
    return value if isinstance(value, str) else json.dumps(value)


def describe_stage(name: str, origin: str, stage: Any, problem: str, common: type[BaseModel]) -> dict[str, Any]:
    """A stage as plain data, without the options of all stages; ``problem`` says why a stage cannot be used."""
    if stage is None:
        return {"name": name, "from": origin, "summary": "cannot be used", "options": [], "problem": problem}
    options = describe_options(stage.config, common)
    return {"name": name, "from": origin, "summary": stage.summary, "options": options}


def print_options(stages: Sequence[Mapping[str, Any]], common: list[dict[str, str]], console: Console) -> None:
    """Print every stage with its origin and its own options, then the options of all stages."""
    for stage in stages:
        heading = f"[bold]{escape(stage['name'])}[/bold]  {escape(stage['summary'])}"
        console.print(f"{heading}\n  from: {escape(stage['from'])}", highlight=False, soft_wrap=True)
        for line in stage.get("problem", "").splitlines():
            console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
        if stage["options"]:
            console.print(_table(stage["options"]))
        console.print()
    console.print("[bold]options of every stage[/bold]", highlight=False)
    console.print(_table(common))


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for column in ("name", "type", "default"):
        table.add_column(column, max_width=30)
    table.add_column("description", ratio=1)
    for row in rows:
        cells = [escape(row[column]) for column in ("name", "type", "default", "description")]  # brackets are no markup
        table.add_row(f"  {cells[0]}", *cells[1:])
    return table
