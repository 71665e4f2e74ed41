"""Single values of a row as text and as turns: what is missing, and what is neither."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from gradus.pipeline.tasks.metadata import as_text
from gradus.pipeline.types import Turn

ROLES = {
    **dict.fromkeys(("human", "user_query"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "function", "tool_response"), "tool"),
}
"""Names of roles in ShareGPT's and similar data -> those that chat templates know."""
READ = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
"""What chat templates read of a turn besides its role and its content."""


class Unfit(Exception):
    """A value that cannot be what its column is for."""

    def __init__(self, column: str, role: str, value: Any, holds: str = "text", expected: str = "text or a number"):
        super().__init__(column)
        self.column, self.role, self.value, self.holds, self.expected = column, role, value, holds, expected


def text_of(value: Any, column: str, role: str) -> str:
    """A value as text; empty where it is missing, in whichever form. Raises: Unfit."""
    if value is None or (isinstance(value, float | Decimal) and value != value):
        return ""
    try:
        text = value if type(value) is str else as_text(value)
        text.isascii() or text.encode()  # JSON can spell half a character, which no file and no tokenizer takes
    except (TypeError, UnicodeEncodeError):
        raise Unfit(column, role, value) from None
    return text if text.strip() else ""


def content_of(value: Any, column: str, role: str) -> str:
    """A completion as text: itself, or the content of its last turn. Raises: Unfit."""
    if isinstance(value, list | tuple):
        turns = turns_of(value, column, role)
        return turns[-1]["content"] if turns else ""
    return text_of(value, column, role)


def turns_of(value: Any, column: str, role: str = "question") -> list[Turn]:
    """The turns of a conversation; none where it is missing. Raises: Unfit."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        expected = "a list of turns, each with `role` and `content` or `from` and `value`"
        raise Unfit(column, role, value, "conversation", expected)
    return [_turn(item, column, role) for item in value if item is not None]


def tools_of(row: Any) -> tuple[Any, ...]:
    """The functions that a row offers, from a list or its JSON text. Raises: Unfit."""
    value = row.get("tools")
    try:
        found = json.loads(value) if isinstance(value, str) and value.strip() else value or []
        if not isinstance(found, list | tuple):
            raise TypeError
        json.dumps(found, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise Unfit("tools", "question", value, "functions", "a list of their descriptions") from None
    return tuple(_given(found))


def _turn(item: Any, column: str, role: str) -> Turn:
    named = isinstance(item, dict) and (item.get("role") or item.get("from"))
    if not isinstance(named, str):
        expected = "turns with `role` and `content`, or with `from` and `value`"
        raise Unfit(column, role, item, "conversation", expected)
    content = _content(item.get("content") if "content" in item else item.get("value"), column, role)
    more = {name: _given(item[name]) for name in READ if item.get(name)}
    try:
        json.dumps(more, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise Unfit(column, role, more, "conversation", "values that JSON can hold") from None
    return {"role": ROLES.get(named, named), "content": content, **more}


def _content(value: Any, column: str, role: str) -> str:
    """What a turn says; of a list of parts, the text of those that have any."""
    if not isinstance(value, list | tuple):
        return text_of(value, column, role)
    parts = [part.get("text") if isinstance(part, dict) else part for part in value]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise Unfit(column, role, value, "text", "text; images and sounds cannot be read")
    return text_of("\n".join(texts), column, role)


def _given(value: Any) -> Any:
    """Nested data without the empty fields that a table gives every row."""
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list | tuple) else value
