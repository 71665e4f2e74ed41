"""The algorithms, one file each. A module of this package that defines ``STAGE`` is a built-in stage.

Gives: ``discover``, every built-in stage by its name, which also finds stages from outside the package when they are
asked for, and ``listing``, the same for people to read.
Must not know: how anything is trained, sampled or shown; no stage knows another.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from gradus.pipeline.common import user_code
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config.outside import FORM, GROUP, find_stage, published_names, reference_of
from gradus.pipeline.stage import Stage

PACKAGE = "gradus"
"""Where built-in stages come from, in a listing."""


class Stages(dict[str, Stage]):
    """name -> stage. It holds the built-in stages; one from outside is looked up when it is asked for."""

    def __missing__(self, name: str) -> Stage:
        """``package.module:STAGE``, or a name that an installed package publishes. Raises: UserError."""
        found = find_stage(name)
        if found is None:
            known = [*self, *published_names()]
            expected = f"one of {', '.join(known)}, or one of your own as {FORM}"
            raise UserError(f"unknown stage `{name}`", got=name, expected=expected, fix=did_you_mean(name, known))
        return cast(Stage, found)


@functools.cache
def discover() -> Stages:
    """Every built-in stage by its name, in alphabetical order."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [module.STAGE for module in modules if hasattr(module, "STAGE")]
    return Stages((stage.name, stage) for stage in sorted(found, key=lambda stage: stage.name))


@dataclass(frozen=True)
class Listed:
    """A stage in a listing."""

    name: str
    """How configurations call it."""
    origin: str
    """The package, entry point or file that it comes from."""
    stage: Stage | None
    """None where it cannot be used."""
    problem: str = ""
    """Why it cannot be used."""


def listing(names: Iterable[str] = ()) -> list[Listed]:
    """The stages of these names; without any, the built-in ones and those that installed packages publish.

    A published stage that cannot be used is listed with its problem. Raises: UserError for a name that is given.
    """
    stages = discover()
    given = [Listed(name, _origin(name, stages), stages[name]) for name in names]
    if given:
        return given
    found = [Listed(name, PACKAGE, stage) for name, stage in stages.items()]
    for point in user_code.published(GROUP):
        origin = f"{user_code.reference_of(point)}, entry point of {user_code.distribution(point)}"
        try:
            if point.name in stages:
                raise UserError("a built-in stage has this name", fix="publish it under another name")
            found.append(Listed(point.name, origin, stages[point.name]))
        except UserError as problem:
            found.append(Listed(point.name, origin, None, str(problem)))
    return found


def _origin(name: str, stages: Stages) -> str:
    """Where the stage of this name comes from."""
    if name in stages:
        return PACKAGE
    reference = reference_of(name)
    if reference is None:
        return ""
    file = user_code.source_file(reference)
    published = [point for point in user_code.published(GROUP) if point.name == name]
    if published:
        return f"{reference}, entry point of {user_code.distribution(published[0])}"
    return str(file) if file is not None else reference
