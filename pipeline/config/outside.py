"""Stages from outside the package in a configuration: ``stage: package.module:STAGE``, or a published name.

The name that the configuration gives stays the value of ``stage``, in a run's config.yaml too, so that every process
that opens the run finds the stage again. Its options are validated by the stage's own class under that name.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field, create_model

from gradus.pipeline.common import user_code, yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.options import NAME_PATTERN
from gradus.pipeline.config.stage import StageConfig, StageOptions

GROUP = "gradus.stages"
"""The entry points by which installed packages publish stages."""
FORM = "`package.module:STAGE`"


@runtime_checkable
class StageLike(Protocol):
    """What a stage must have; :class:`gradus.pipeline.stage.Stage` has it."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def config(self) -> type[StageConfig]: ...
    @property
    def weigh(self) -> Callable[..., Any]: ...
    @property
    def needs(self) -> Callable[..., Any]: ...


def reference_of(name: str, where: str = "") -> str | None:
    """``package.module:STAGE`` that a stage's name means; None where no package publishes the name.

    Raises: UserError where several packages do.
    """
    return name if ":" in name else user_code.published_reference(GROUP, name, where)


def find_stage(name: str, where: str = "") -> StageLike | None:
    """The stage that ``package.module:STAGE`` or a published name means; None where no package publishes the name.

    Raises: UserError where it cannot be imported or is no stage.
    """
    reference = reference_of(name, where)
    if reference is None:
        return None
    found = user_code.load(reference, "stage", FORM, where)
    expected = "`STAGE = Stage(name, summary, config, weigh, needs)` of gradus.pipeline.stage"
    if not isinstance(found, StageLike):
        got, fix = f"{reference}, which is of type {type(found).__name__}", "name the Stage object of that module"
        raise UserError(f"`{reference}` is no stage", where=where, got=got, expected=expected, fix=fix)
    if not (isinstance(found.config, type) and issubclass(found.config, StageConfig)):
        got, expected = f"config={found.config!r}", "config=CLASS, a subclass of gradus.pipeline.config.StageConfig"
        raise UserError(f"the stage `{reference}` has no option class", where=where, got=got, expected=expected)
    if not re.fullmatch(NAME_PATTERN, str(found.name)):
        expected = "at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        got, what = f"name={found.name!r}", f"the stage `{reference}` has a name that no folder can have"
        raise UserError(what, where=where, got=got, expected=expected)
    if ":" not in name and found.name != name:
        fix = "give both the same name"
        what = f"the entry point `{name}` of {GROUP} publishes a stage of another name"
        raise UserError(what, where=where, got=found.name, expected=name, fix=fix)
    return found


def default_label(name: str) -> str:
    """What a stage is called in its pipeline unless the configuration says it: the stage's own name, a folder's."""
    try:
        found = find_stage(name) if ":" in name else None
    except UserError:  # reported where the configuration is validated
        return name.partition(":")[0].rpartition(".")[2]
    return found.name if found is not None else name


def tag_of(options: type[StageOptions]) -> str | None:
    """The value of ``stage`` that selects this option class; None where it accepts any."""
    annotation = options.model_fields["stage"].annotation
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Literal else None


@functools.cache
def called(options: type[StageConfig], name: str, reference: str) -> type[StageConfig]:
    """A stage's option class, selected by ``stage: name``."""
    stage: Any = (Literal[name], Field(description=f"Discriminator: selects {name}."))  # type: ignore[valid-type]
    made = create_model(
        options.__name__, __base__=options, __module__=options.__module__, __doc__=options.__doc__, stage=stage
    )
    made.origin = reference
    return made


def option_classes(
    data: Any, built_in: Iterable[type[StageOptions]], where: Callable[[yaml_text.Path], str]
) -> tuple[list[type[StageConfig]], list[UserError]]:
    """The option classes of the stages from outside that a configuration's raw data names, and what is wrong with
    others; ``where`` says where the value at a path stands.
    """
    known, problems = {tag_of(options) for options in built_in}, list[UserError]()
    found: dict[str, type[StageConfig]] = {}
    entries = data.get("stages") if isinstance(data, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        name = entry.get("stage") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in known or name in found:
            continue
        place = where(("stages", index, "stage"))
        try:
            stage = find_stage(name, place)
            if stage is None:
                continue  # an unknown name: validation says so, with the names that there are
            if stage.name in known:
                fix = "give it another name in its `Stage(...)`"
                what = f"the stage `{name}` has the name of a built-in one"
                raise UserError(what, where=place, got=stage.name, expected="a name of its own", fix=fix)
            found[name] = called(stage.config, name, reference_of(name) or name)
        except UserError as problem:
            problems.append(problem)
    return list(found.values()), problems


def published_names() -> list[str]:
    """The names under which installed packages publish stages."""
    return sorted({point.name for point in user_code.published(GROUP)})


def source_of(options: type[StageConfig]) -> Path:
    """The file whose code a stage is: the one that its reference names or, for a built-in one, its option class's."""
    file = user_code.source_file(options.origin) if options.origin is not None else None
    return file or Path(inspect.getfile(options))
