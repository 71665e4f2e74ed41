"""Values that validation turned into another kind, which are refused: a configuration means what is written in it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.explain import Origin, combined, show, step_into

Numbers = Callable[[str], Mapping[str, str]]
"""Name of a reward -> option -> what number it must be."""


def unknown(reward: str) -> Mapping[str, str]:
    """The options of a reward where nobody who knows rewards has said more."""
    return {}


def refuse_coerced(data: Any, valid: Any, origin: Origin, numbers: Numbers) -> None:
    """Refuse values that validation turned into another kind, such as the text "40" or true for a number."""
    problems: list[UserError] = []

    def finite(path: yaml_text.Path) -> str:
        """What a number at this path is expected to be; an option of a reward stands behind its ``params``."""
        entry = functools.reduce(step_into, path[:-2], data) if path[-2:-1] == ("params",) else None
        name = entry.get("reward") if isinstance(entry, dict) else None
        return (numbers(name).get(str(path[-1])) if isinstance(name, str) else None) or "a finite number"

    def compare(raw: Any, kept: Any, path: yaml_text.Path) -> None:
        if isinstance(raw, dict) and isinstance(kept, dict):
            for name in raw.keys() & kept.keys():
                compare(raw[name], kept[name], (*path, name))
        elif isinstance(raw, list) and isinstance(kept, list):
            for index, pair in enumerate(zip(raw, kept, strict=False)):
                compare(*pair, (*path, index))
        elif _kind(raw) != _kind(kept):
            fix = "remove the quotes" if isinstance(raw, str) else ""
            what = f"`{path[-1]}` has a value it cannot have"
            # As JSON, which has no other numbers, an infinite one became null.
            expected = finite(path) if isinstance(raw, float) and not math.isfinite(raw) else _kind(kept)
            problems.append(UserError(what, where=origin.where(path), got=show(raw), expected=expected, fix=fix))

    compare(data, valid, ())
    if problems:
        raise combined(problems, origin.file)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", type(None): "null"}
    return kinds.get(type(value), "a list or a group of options")
