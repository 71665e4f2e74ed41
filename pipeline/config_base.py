"""What every option class shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Run, stage and reward names become folder and metric names: no separators, no leading dot."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Options(BaseModel):
    """Base of every option class."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
