"""The base of all option classes, and comparisons of options: identity and differences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Run, stage and reward names become folder and metric names: no separators, no leading dot."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Options(BaseModel):
    """Base of every option class."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, serialize_by_alias=True
    )
    replaced: ClassVar[dict[str, str]] = {}
    """removed option -> what to do instead"""


class _Runtime:
    """Marks an option that decides how, where or how carefully to compute, and never what."""


RUNTIME = _Runtime()
"""``option: Annotated[int, RUNTIME]`` is no part of a run's identity: it may change when the run is resumed."""


def fields_of(options: type[BaseModel]) -> dict[str, FieldInfo]:
    """The options of a class by the name that a configuration gives them: ``async``, where Python says ``async_``."""
    return {field.alias or name: field for name, field in options.model_fields.items()}


def identity(value: Any) -> Any:
    """Options as plain data without those marked :data:`RUNTIME`: equal where the same thing is asked for.

    >>> class Example(Options):
    ...     rate: float = 0.1
    ...     threads: Annotated[int, RUNTIME] = 1
    >>> identity(Example(threads=4))
    {'rate': 0.1}
    """
    if isinstance(value, Options):
        fields = type(value).model_fields
        kept = {name: field for name, field in fields.items() if RUNTIME not in field.metadata}
        return {field.alias or name: identity(getattr(value, name)) for name, field in kept.items()}
    if isinstance(value, dict):
        return {key: identity(item) for key, item in value.items()}
    return [identity(item) for item in value] if isinstance(value, list | tuple) else value


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The changes between two resolved configurations, one ``key: old -> new`` for each.

    >>> differences({"lr": 0.1, "steps": [1, 2]}, {"lr": 0.2, "steps": [1, 2]})
    ['lr: 0.1 -> 0.2']
    >>> differences({"stages": [{"name": "a"}]}, {"stages": [{"name": "a"}, {"name": "b"}]})
    ['stages.b: null -> {"name": "b"}']
    """
    return [f"{key}: {_short(one)} -> {_short(two)}" for key, one, two in changes(old, new, path)]


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The changes between two resolved configurations: (dotted key, old value, new value).

    >>> list(changes({"lr": 0.1, "steps": 5}, {"lr": 0.2, "steps": 5}))
    [('lr', 0.1, 0.2)]
    """
    if isinstance(old, list) and isinstance(new, list):
        olds, news = _labelled(old), _labelled(new)
        if olds is not None and news is not None:
            old, new = olds, news
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _labelled(entries: list[Any]) -> dict[str, Any] | None:
    """A list of stages or rewards by their labels, so that an added entry is one change; None for other lists."""
    labels = [str(e.get("name") or e.get("reward") or "") if isinstance(e, dict) else "" for e in entries]
    return dict(zip(labels, entries, strict=True)) if all(labels) and len(set(labels)) == len(labels) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
