"""What every option class shares."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Run, stage and reward names become folder and metric names: no separators, no leading dot."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Options(BaseModel):
    """Base of every option class."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class _Runtime:
    """Marks an option that says how, where or how watchfully to compute, and never what."""


RUNTIME = _Runtime()
"""``option: Annotated[int, RUNTIME]`` is no part of what a run is: it may change while the run goes on."""


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
        return {name: identity(getattr(value, name)) for name in fields if RUNTIME not in fields[name].metadata}
    if isinstance(value, dict):
        return {key: identity(item) for key, item in value.items()}
    return [identity(item) for item in value] if isinstance(value, list | tuple) else value
