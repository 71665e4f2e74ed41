"""What every option class shares."""

from __future__ import annotations

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
    """option that is no more -> what to do instead"""


class _Runtime:
    """Marks an option that says how, where or how watchfully to compute, and never what."""


RUNTIME = _Runtime()
"""``option: Annotated[int, RUNTIME]`` is no part of what a run is: it may change while the run goes on."""


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
