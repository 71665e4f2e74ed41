"""A strict YAML reader: the scalars of YAML 1.2, no tags, no duplicate keys, bounded in size, with line numbers.

PyYAML follows YAML 1.1, where ``1e-4`` is a text, ``on`` is true, ``010`` is eight and ``1:30`` is ninety. Here what
looks like a number is one, only ``true`` and ``false`` are booleans, and dates remain text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from gradus.pipeline.common.errors import UserError

MAX_CHARACTERS = 1_000_000
MAX_NODES = 20_000
"""PyYAML takes a second for as many."""
MAX_DEPTH = 40

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Document:
    """A YAML document and the line of each value."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)
    """Path of a value -> its line, from 1; a value in a mapping has the line of its key."""


def scalar(text: str) -> Any:
    """The value of an unquoted scalar.

    >>> [scalar(t) for t in ("1e-4", "on", "010", "1_000", "1:30", "true", "~")]
    [0.0001, 'on', 10, 1000, '1:30', True, None]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 400 else text
    return float(text) if _FLOAT.fullmatch(text) else text


def parse(text: str, source: str) -> Document:
    """Parse one YAML document; ``source`` names it in error messages. Raises: UserError."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            "the YAML is too large", where=source, got=f"{len(text):,} characters", expected="at most 1,000,000"
        )
    try:
        node = _Composer(text, source).get_single_node()
        reader = _Reader(source)
        return Document(None if node is None else reader.value(node, ()), reader.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source} line {mark.line + 1}, column {mark.column + 1}" if mark else source
        problem = (error.problem or "invalid YAML").replace("%YAML", "YAML")
        raise UserError(f"not valid YAML: {problem}", where=where, fix=_advice(problem)) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}", where=source) from None
    except RecursionError:
        raise _too_large(source) from None


def dump(data: Any) -> str:
    """YAML text that :func:`parse` turns back into the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _advice(problem: str) -> str:
    if "\\t" in problem:
        return "indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return "put a text that contains `: ` in quotes"
    return "check indentation, colons and quotes there and in the line before"


def _too_large(where: str) -> UserError:
    expected = f"at most {MAX_NODES:,} keys and values and {MAX_DEPTH} levels, aliases expanded"
    return UserError("the YAML is too large", where=where, expected=expected)


class _Composer(yaml.BaseLoader):
    """PyYAML's nodes, limited while they are made: a megabyte of them takes half a minute and 300 MB."""

    def __init__(self, text: str, source: str):
        super().__init__(text)
        self.source, self.nodes, self.depth = source, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH + 1:
            raise _too_large(f"{self.source} line {self.peek_event().start_mark.line + 1}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turns PyYAML's nodes into data. Aliases are copied, so the number of values is limited as well as the text."""

    def __init__(self, source: str):
        self.source, self.lines, self.nodes = source, {}, 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _too_large(self._at(node))
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")):
            raise UserError("YAML tags are not read", where=self._at(node), got=node.tag, fix="write the plain value")
        if isinstance(node, yaml.ScalarNode):
            return scalar(node.value) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, child in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError("a key must be a text", where=self._at(key_node), got="a list or a mapping")
            line = key_node.start_mark.line + 1
            if key in first:
                got, fix = f"lines {first[key]} and {line}", "keep one of them"
                raise UserError(f"the key `{key}` stands twice", where=self._at(key_node), got=got, fix=fix)
            first[key] = line
            if key == "<<" and key_node.style is None:
                merged = self._merge(child, path)
            else:
                self.lines[(*path, key)] = line
                own[key] = self.value(child, (*path, key))
        return {**merged, **own}

    def _merge(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        value = self.value(node, (*path, "<<"))
        merged: dict[str, Any] = {}
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                raise UserError("`<<` merges mappings only", where=self._at(node), got=repr(part))
            merged = {**part, **merged}
        return merged

    def _at(self, node: yaml.Node) -> str:
        return f"{self.source} line {node.start_mark.line + 1}"


class _Dumper(yaml.SafeDumper):
    """Quotes every text that :func:`scalar` would read as another type; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else (None if isinstance(scalar(text), str) else "'")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
