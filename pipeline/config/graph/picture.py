"""The graph of stages as text: in one line, and as an indented tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.graph.inputs import START, is_chain, origins

Entry = tuple[str, Sequence[str]]
"""A stage's label, and the names of what it starts from or is made of."""


def entries(stages: Sequence[Any]) -> list[Entry]:
    """The stages with what they start from; empty where they are a chain, which needs no picture."""
    return [] if is_chain(stages) else [(each.label, origins(stages, index)) for index, each in enumerate(stages)]


def in_one_line(stages: Sequence[Any], shown: Callable[[Any], str] = lambda stage: stage.label) -> str:
    """``sft -> dapo -> gfpo`` of a chain, otherwise every stage with what it starts from."""
    if is_chain(stages):
        return " -> ".join(map(shown, stages))
    return "; ".join(f"{' + '.join(origins(stages, index))} -> {shown(each)}" for index, each in enumerate(stages))


def check_chain(stages: Sequence[Any], message: str, where: str, fix: str) -> None:
    """Refuse stages that are no chain. Raises: UserError."""
    if not is_chain(stages):
        expected = "stages each of which starts from the one before it"
        raise UserError(message, where=where, got=in_one_line(stages), expected=expected, fix=fix)


def tree(graph: Sequence[Entry]) -> list[str]:
    """The lines of a tree, a stage below what it starts from; one that is made of several says of which.

    >>> print(chr(10).join(tree([("sft", ["start"]), ("a", ["sft"]), ("b", ["sft"]), ("soup", ["a", "b"])])))
    start
    └── sft
        ├── a
        │   └── soup = a + b
        └── b
    """
    labels = [label for label, _ in graph]
    below: dict[str, list[str]] = {name: [] for name in (START, *labels)}
    shown = dict(zip(labels, labels, strict=True))
    for label, names in graph:
        below[next((name for name in names if name in labels), START)].append(label)
        if len(names) > 1:
            shown[label] = f"{label} = {' + '.join(names)}"

    def lines(name: str, indent: str) -> list[str]:
        found: list[str] = []
        for place, child in enumerate(below[name], 1):
            last = place == len(below[name])
            found.append(f"{indent}{'└── ' if last else '├── '}{shown[child]}")
            found += lines(child, indent + ("    " if last else "│   "))
        return found

    return [START, *lines(START, "")] if graph else []
